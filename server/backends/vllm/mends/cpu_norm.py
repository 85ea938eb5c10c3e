"""On CPUs: RMSNorm by vLLM's kernel, one pass over the numbers where torch makes half a dozen.

vLLM has the kernel for CPUs and takes it on GPUs alone. It is offered here the way vLLM foresees, as one more provider
of its operators, and asked for by `PRIORITY`.
"""

from functools import lru_cache

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
    alike = weight is None or weight.dtype == x.dtype
    return alike and variance_size is None and x.shape[-1] % LANES == 0


def _takes_sum(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> bool:
    takes = weight is not None and _takes(x, weight, epsilon, variance_size)
    return takes and x.is_contiguous() and x_residual.is_contiguous()


def _rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None, epsilon: float, variance_size: int | None = None
) -> torch.Tensor:
    normed = torch.empty(x.shape, dtype=x.dtype)
    if weight is None:
        weight = _ones(x.shape[-1], x.dtype)
    torch.ops._C.rms_norm(normed, x.contiguous(), weight, epsilon)
    return normed


@lru_cache(maxsize=8)
def _ones(width: int, dtype: torch.dtype) -> torch.Tensor:
    """The weight of rows that have none, such as Llama 4's queries and keys."""
    return torch.ones(width, dtype=dtype)


def _fused_add_rms_norm(
    x: torch.Tensor,
    x_residual: torch.Tensor,
    weight: torch.Tensor | None,
    epsilon: float,
    variance_size: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    torch.ops._C.fused_add_rms_norm(x, x_residual, weight, epsilon)
    return x, x_residual
