"""torch compiles nothing where the model runs as it is written.

Why: with `enforce_eager` vLLM would still compile parts of its sampler, among them the ranking of tokens, which
    asked_logprobs.py does without. That takes seconds and a C++ compiler.
Where: the server's process, before an engine with `enforce_eager` on CPUs starts. An operator's word is the last.
Upstream: vllm-project/vllm#47756 (open) has a sampler that cannot be compiled run as it is written.
Needed: tests/engine/test_mends.py::test_vllm_still_compiles_the_ranking_of_tokens
Until: vLLM compiles nothing with `enforce_eager`.
"""

import os


def install() -> None:
    """For every engine that this process starts from now on."""
    os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
