"""Python does not warn about what an engine holds that is ended at once.

Why: nothing is left to finish when the server ends, and vLLM's processes would spend seconds on tidying up what dies
    with them, so they are ended. multiprocessing then tidies up, and prints warnings about leaks to the console.
Where: the server's process, before the engine starts. An operator's word is the last.
Upstream: vllm-project/vllm#8933 (open) is about these warnings.
Needed: tests/engine/test_bare_vllm.py::test_an_engine_without_mends_that_is_ended_at_once_leaves_warnings
Until: vLLM's processes end within a second, and leave nothing behind.
"""

import os


def install() -> None:
    """For every process that this process starts from now on."""
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning,ignore:resource_tracker:UserWarning")
