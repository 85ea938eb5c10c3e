"""The model runs in the engine core's process, not in one of its own.

Why: on a CPU vLLM gives the model a third process, as it never does on one GPU. It takes seconds to start and 0.6 GiB,
    and each step of the engine waits for messages to it and back: 273 to 329 verdicts a second in bursts of 32 without
    it, 191 to 238 with it.
Where: the server's process, before an engine on CPUs starts. An operator's word is the last.
Upstream: none known against it; vllm-project/vllm#36487 (merged) relies on it to bind the threads of OpenMP, which
    bound_threads.py does here.
Needed: tests/engine/test_mends.py::test_vllm_still_gives_a_model_on_cpus_a_process_of_its_own
Until: vLLM runs one model on CPUs in the engine core's process.
"""

import os


def install() -> None:
    """For every engine that this process starts from now on."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
