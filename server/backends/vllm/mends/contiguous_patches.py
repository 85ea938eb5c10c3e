"""The patches of a picture are contiguous when Llama 4's vision tower multiplies them.

Why: the tower hands its linear layer a permuted tensor, and the linear layer for CPUs refuses it ("Expected
    a.stride(-1) == 1"), so that every picture fails.
Where: every process of vLLM on CPUs; Llama 4.
Upstream: none known in vLLM; sgl-project/sglang#10611 (merged) is the same change to the same layer of SGLang.
Needed: tests/engine/test_mends.py::test_the_vision_tower_still_multiplies_permuted_patches
Until: Llama4UnfoldConvolution makes its patches contiguous, or the linear layer for CPUs takes them as they are.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from vllm.model_executor.models.mllama4 import Llama4UnfoldConvolution


def install() -> None:
    """For every vision tower that computes in this process from now on."""
    from vllm.model_executor.models.mllama4 import Llama4UnfoldConvolution

    Llama4UnfoldConvolution.forward = of_numbers


def of_numbers(self: "Llama4UnfoldConvolution", hidden_states: "torch.Tensor") -> "torch.Tensor":
    """The layer's result for tiles that are numbers already."""
    embedded: torch.Tensor
    embedded, _ = self.linear(self.unfold(hidden_states).permute(0, 2, 1).contiguous())
    return embedded
