"""On CPUs: steps are filled up to one of a few sizes.

oneDNN writes machine code for every size of a matrix, the first time that it meets it, and that takes as long as
computing a short prompt. Where steps are not full, hardly any has as many tokens as one before. What fills a step up
is neither kept nor read: vLLM does the same on GPUs, where it replays recorded graphs of a few sizes.
"""

from typing import Any

from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

LARGEST_LOT = 64


def install() -> None:
    """For every engine that computes in this process from now on."""
    CPUModelRunner._determine_batch_execution_and_padding = _filled_up


def filled_up(tokens: int) -> int:
    """The size of a step of so many tokens: at most an eighth more, eight sizes between a power of two and the next."""
    lot = min(LARGEST_LOT, 1 << max(0, tokens.bit_length() - 4))
    return -(-tokens // lot) * lot


def _filled_up(runner: CPUModelRunner, num_tokens: int, *arguments: Any, **options: Any) -> Any:
    # The runner's buffers hold no more than its largest step.
    size = min(filled_up(num_tokens), runner.max_num_tokens)
    return GPUModelRunner._determine_batch_execution_and_padding(runner, size, *arguments, **options)
