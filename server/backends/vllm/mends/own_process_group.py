"""Ctrl-C does not reach vLLM's processes.

Why: a terminal sends Ctrl-C to all processes of the group that it started. vLLM's processes would end at once, and with
    them the requests that the server still answers before it ends.
Where: every process of this server's engine.
Upstream: vllm-project/vllm#36259 (the same change, closed without being merged).
Needed: tests/engine/test_bare_vllm.py::test_an_engine_without_mends_is_in_its_servers_process_group
Until: vLLM's processes have a process group of their own.
"""

import os


def install() -> None:
    """For this process and those that it starts."""
    os.setpgid(0, 0)
