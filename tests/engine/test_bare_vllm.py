"""What vLLM does without this server's mends, seen from outside. A test that fails says that a mend can go."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from vllm.platforms import current_platform

from server.backends.vllm.mends.death_with_server import SERVER_PID
from tests.conftest import START_TIMEOUT_S, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not current_platform.is_cpu(), reason="pocket's engine computes on CPUs"),
]


@dataclass
class BareServer:
    """A process that started an engine of vLLM's, and what was found out about it."""

    process: subprocess.Popen[str]
    engine: psutil.Process
    console: Path

    def end(self) -> str:
        """Has it end the engine, and returns all that was written to its console."""
        self.process.communicate("end\n", timeout=120)
        return self.console.read_text(encoding="utf-8")


@contextlib.contextmanager
def bare_server(folder: Path) -> Iterator[BareServer]:
    ours = ("VLLM_", "OMP_", "GOMP_", "KMP_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    for name in (SERVER_PID, "PYTHONWARNINGS", "TORCH_COMPILE_DISABLE"):
        environment.pop(name, None)
    ready = folder / "ready"
    with (folder / "console").open("w") as console:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.engine.bare_vllm", str(ready)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=console,
            stderr=console,
            text=True,
            start_new_session=True,
        )
    started: list[psutil.Process] = []

    def is_ready() -> bool:
        """Remembers what it started, which a killed process leaves behind."""
        assert process.poll() is None, (folder / "console").read_text(encoding="utf-8")[-3000:]
        started[:] = psutil.Process(process.pid).children(recursive=True)
        return ready.exists()

    try:
        wait_until(is_ready, timeout=START_TIMEOUT_S)
        yield BareServer(process, max(started, key=lambda child: child.num_threads()), folder / "console")
    finally:
        for child in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BareServer]:
    with bare_server(tmp_path_factory.mktemp("bare")) as started:
        yield started


def test_an_engine_without_mends_is_in_its_servers_process_group(server):
    assert os.getpgid(server.engine.pid) == os.getpgid(server.process.pid)


def test_threads_of_an_engine_without_mends_share_their_cores(server):
    if torch.get_num_threads() == 1:
        pytest.skip("one thread has nothing to share")
    tasks = Path(f"/proc/{server.engine.pid}/task").iterdir()
    places = {frozenset(os.sched_getaffinity(int(task.name))) for task in tasks}
    assert places == {frozenset(os.sched_getaffinity(0))}


def test_an_engine_without_mends_that_is_ended_at_once_leaves_warnings(server):
    """The last of those that need it."""
    words = server.end()
    assert "leaked" in words or "FutureWarning" in words, words


def test_an_engine_without_mends_outlives_its_server(tmp_path):
    with bare_server(tmp_path) as server:
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        time.sleep(10)
        assert server.engine.is_running()
        assert server.engine.status() != psutil.STATUS_ZOMBIE
