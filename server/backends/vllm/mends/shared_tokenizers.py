"""A deep copy of a tokenizer is the tokenizer itself.

Why: while Llama 4's processor is loaded, vLLM and transformers copy its tokenizer about five times in each of two
    processes, and a copy of 202,048 tokens takes seconds. Copies are for callers who change theirs, or who tokenize in
    several threads: here vLLM is given token ids, and one thread alone expands images.
Where: every process of vLLM.
Upstream: vllm-project/vllm#36557 and vllm-project/vllm#41181 (merged) brought vLLM's copies, against "Already
    borrowed"; huggingface/transformers#44894 (merged) spared some of transformers'.
Needed: tests/engine/test_mends.py::test_loading_a_tokenizer_still_copies_it
Until: an engine that is given token ids loads without copies of its tokenizer.
"""

import copy
from typing import Any


def install() -> None:
    """For all copies that this process makes from now on."""
    from tokenizers import Tokenizer

    def shared(tokenizer: Any, _: Any) -> Any:
        return tokenizer

    # The class is not Python's and takes no __deepcopy__; pickling it must go on as before, so copyreg is no way.
    copy._deepcopy_dispatch[Tokenizer] = shared  # type: ignore[attr-defined]  # ty: ignore[missing-attribute]
