"""vLLM's processes are killed when the server's process dies.

Why: a server that is killed with SIGKILL leaves vLLM's processes behind. They hold the memory of the GPU, so that the
    next server cannot start.
Where: every process of this server's engine.
Upstream: vllm-project/vllm#55510 (open); vllm-project/vllm#55846 and vllm-project/vllm#34816 would mend it (open).
Needed: tests/engine/test_bare_vllm.py::test_an_engine_without_mends_outlives_its_server
Until: vLLM's processes end with the process that started them, whatever ended that.
"""

import ctypes
import os
import signal

SERVER_PID = "GUARD_SERVER_PID"
"""Environment variable that tells the engine's processes which process they belong to."""

_PR_SET_PDEATHSIG = 1


def install() -> None:
    """For this process, whose parent is the server's or was started by it."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        os.kill(int(os.environ[SERVER_PID]), 0)
    except ProcessLookupError:
        os._exit(1)  # the server was killed before the line above took effect
