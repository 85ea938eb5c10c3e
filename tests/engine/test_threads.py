"""On a CPU each thread of the engine's arithmetic stays on a core of its own."""

import os
from pathlib import Path

import pytest
import torch
from vllm.platforms import current_platform

from server.backends.vllm.mends import bound_threads

OPENMP = ("OMP_", "GOMP_", "KMP_")

pytestmark = pytest.mark.skipif(not current_platform.is_cpu(), reason="elsewhere a GPU computes")


@pytest.mark.skipif(any(name.startswith(OPENMP) for name in os.environ), reason="OpenMP was told otherwise")
def test_an_engines_threads_share_no_core(pocket_backend):
    (engine,) = pocket_backend.engine.engine_core.resources.engine_manager.processes
    tasks = Path(f"/proc/{engine.pid}/task").iterdir()
    # Threads that do no arithmetic were started by the first one, and stay beside it.
    places = {frozenset(os.sched_getaffinity(int(task.name))) for task in tasks}
    assert len(places) == torch.get_num_threads()
    assert sum(map(len, places)) == len(frozenset().union(*places))
    assert os.sched_getaffinity(0) >= frozenset().union(*places), "this process is bound to nothing"


def test_the_environment_is_as_it_was(monkeypatch):
    for name in [name for name in os.environ if name.startswith(OPENMP)]:
        monkeypatch.delenv(name)
    before = dict(os.environ)

    def start_in_vain() -> None:
        with bound_threads.installed():
            assert dict(os.environ) == before | bound_threads.VARIABLES
            raise RuntimeError("no engine")

    with pytest.raises(RuntimeError, match="no engine"):
        start_in_vain()
    assert dict(os.environ) == before


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"])
def test_an_operators_word_on_threads_is_the_last(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    before = dict(os.environ)
    with bound_threads.installed():
        assert dict(os.environ) == before
