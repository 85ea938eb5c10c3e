"""Steps are filled up to one of a few sizes, and may be twice as large as vLLM's server takes them.

Why: oneDNN writes machine code for every size of a matrix, the first time that it meets it, and that takes as long as
    computing a short prompt (450 us, four to a step). Where steps are not full, hardly any has as many tokens as one
    before. What fills a step up is neither kept nor read: vLLM does the same on GPUs, where it replays recorded graphs
    of a few sizes. 1.29 times the verdicts of one caller, 1.33 of four, 1.05 of 32. Larger steps pay where those that
    are not full cost no more for it: 1.09 times the verdicts of 32 callers.
Where: this server's engine on CPUs.
Upstream: none known in vLLM; uxlfoundation/oneDNN#1361 says that each new size costs the making of its code.
Needed: tests/engine/test_spared_work.py::test_a_new_size_of_step_still_costs_more_than_one_seen_before
Until: oneDNN takes any size with the same code, or vLLM's CPU runner has sizes of its own.
"""

from typing import Any

LARGEST_LOT = 64

ARGUMENTS: dict[str, Any] = {"max_num_batched_tokens": 4096}
"""Arguments of the engine: tokens of a step, as many as vLLM's offline engine takes."""


def install() -> None:
    """For every engine that computes in this process from now on."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    determine = GPUModelRunner._determine_batch_execution_and_padding

    def filled(self: GPUModelRunner, num_tokens: int, *arguments: Any, **options: Any) -> Any:
        # The runner's buffers hold no more than its largest step.
        return determine(self, min(filled_up(num_tokens), self.max_num_tokens), *arguments, **options)

    CPUModelRunner._determine_batch_execution_and_padding = filled


def filled_up(tokens: int) -> int:
    """The size of a step of so many tokens: at most an eighth more, eight sizes between a power of two and the next."""
    lot = min(LARGEST_LOT, 1 << max(0, tokens.bit_length() - 4))
    return -(-tokens // lot) * lot
