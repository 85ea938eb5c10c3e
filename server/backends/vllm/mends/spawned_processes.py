"""vLLM's processes are spawned, not forked.

Why: vLLM forks unless told otherwise, except on CPUs. A forked process believes that its plugins have run already, so
    that none of this server's changes would be made in it, its death with the server among them. And forking a process
    with threads and an event loop is asking for trouble.
Where: the server's process, before the engine starts.
Upstream: vllm-project/vllm#27940 (plugins run in forked processes too, closed without being merged).
Needed: tests/engine/test_mends.py::test_a_forked_process_still_runs_no_plugins
Until: vLLM spawns its processes on GPUs too.
"""

import os


def install() -> None:
    """For every engine that this process starts from now on."""
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
