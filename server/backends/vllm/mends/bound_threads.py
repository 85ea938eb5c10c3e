"""Each thread of the engine's arithmetic stays on a core of its own.

Why: a thread that moves to a core where another one works waits for it, and all others wait with it: in 7 of 17 turns
    some requests waited for 350 to 970 ms, in none of 12 with this (float32). OpenMP reads its variables as a process
    starts, and vLLM sets them only where the model has a process of its own (model_beside_scheduler.py).
Where: the server's process, while an engine on CPUs starts, unless the environment says anything of OpenMP.
Upstream: vllm-project/vllm#36487 (merged) binds those of a process of its own.
Needed: tests/engine/test_bare_vllm.py::test_threads_of_an_engine_without_mends_share_their_cores
Until: vLLM binds the threads of an engine whose model runs in the engine core's process.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from server.backends.vllm.device import is_cpu

VARIABLES = {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}
"""What OpenMP reads as a process starts."""


@contextmanager
def installed() -> Iterator[None]:
    """For engines that start meanwhile; one thread for each core is what they have.

    This process read its environment long before, and stays where the system puts it.
    """
    if not is_cpu() or any(name.startswith(("OMP_", "GOMP_", "KMP_")) for name in os.environ):
        yield
        return
    os.environ.update(VARIABLES)
    try:
        yield
    finally:
        for name in VARIABLES:
            del os.environ[name]
