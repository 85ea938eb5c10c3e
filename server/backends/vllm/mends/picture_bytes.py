"""Llama 4's vision tower takes pictures in bytes, and makes numbers of them itself.

Why: pictures pass from process to process up to three times on their way, tens of megabytes each time. Bytes are a
    quarter of float32. Cut into patches before they are numbers, they also take half the time: 1.84 to 0.88 ms a tile
    in bfloat16 on one core, 3.2 to 1.0 in float32.
Where: every process of vLLM on CPUs; Llama 4. Elsewhere the tower stays as vLLM wrote it.
Upstream: vllm-project/vllm#50411 (merged) does this for some networks, and Llama 4 is none of them.
Needed: tests/engine/test_mends.py::test_vllm_still_takes_no_bytes_for_llama_4
Until: vLLM normalizes the pictures of Llama 4 on the device (`supports_mm_device_do_normalize`).
"""

from typing import cast

from server.backends.vllm.device import is_cpu


def takes_bytes() -> bool:
    """Whether the engine's vision tower takes pictures as bytes: where this is installed."""
    return is_cpu()


def install() -> None:
    """For every vision tower that computes in this process from now on. After contiguous_patches.py."""
    import torch
    from vllm.model_executor.models.mllama4 import Llama4UnfoldConvolution

    from server.backends.vllm.llama4.pixels import numbers_of, patches_of
    from server.backends.vllm.mends.contiguous_patches import of_numbers

    def forward(self: Llama4UnfoldConvolution, hidden_states: torch.Tensor) -> torch.Tensor:
        if hidden_states.dtype != torch.uint8:
            return of_numbers(self, hidden_states)
        # Bytes are cut before they are numbers: a quarter as much to move, at twice the speed.
        side, *_ = cast("tuple[int, int]", self.unfold.kernel_size)
        patches = numbers_of(patches_of(hidden_states, side), cast("torch.dtype", self.linear.weight.dtype))
        embedded: torch.Tensor
        embedded, _ = self.linear(patches)
        return embedded

    Llama4UnfoldConvolution.forward = forward
