"""What vLLM says before it sets up its logging keeps to its level, too.

Why: every process of vLLM sets up logging after some of its imports. Until then Python prints warnings itself, whatever
    VLLM_LOGGING_LEVEL says. On CPUs each process told the console at every start that Triton has no backend for them.
Where: the server's process, before the engine starts, and every process that imports torch, with torch_companions.
Upstream: none known.
Needed: tests/engine/test_mends.py::test_vllm_still_speaks_before_it_reads_its_level
Until: vLLM sets up logging before it logs.
"""

import logging
import os


def install() -> None:
    """For this process. Where vLLM sets up its logging, that replaces this."""
    if level := os.environ.get("VLLM_LOGGING_LEVEL"):
        logging.getLogger("vllm").setLevel(level.upper())
