"""On CPUs: RMSNorm by vLLM's kernel, one pass over the numbers where torch makes half a dozen.

vLLM has the kernel for CPUs and takes it on GPUs alone. It is offered here the way vLLM foresees, as one more provider
of its operators, and asked for by `PRIORITY`.
"""

import torch
from vllm import ir
from vllm.platforms import current_platform

PROVIDER = "guard_cpu"

PRIORITY = {name: [PROVIDER, "native"] for name in ("rms_norm", "fused_add_rms_norm")}
"""For vLLM's argument `ir_op_priority`: this provider where it can, else vLLM's default."""

LANES = 32
"""Numbers that the kernel takes at once, at most: a row must be made of whole lots."""


def install() -> None:
    """For every model that is built from now on in this process."""
    current_platform.import_kernels()
    ir.ops.rms_norm.register_impl(PROVIDER, supports_args=_takes)(_rms_norm)
    ir.ops.fused_add_rms_norm.register_impl(PROVIDER, supports_args=_takes_sum, inplace=True)(_fused_add_rms_norm)


def _takes(x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
    return variance_size is None and weight is not None and weight.dtype == x.dtype and x.shape[-1] % LANES == 0


def _takes_sum(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> bool:
    return _takes(x, weight, epsilon, variance_size) and x.is_contiguous() and x_residual.is_contiguous()


def _rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
) -> torch.Tensor:
    normed = torch.empty(x.shape, dtype=x.dtype)
    torch.ops._C.rms_norm(normed, x.contiguous(), weight, epsilon)
    return normed


def _fused_add_rms_norm(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual
