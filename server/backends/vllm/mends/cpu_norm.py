"""RMSNorm is computed by vLLM's kernel for CPUs: one pass over the numbers where torch makes half a dozen.

Why: vLLM has the kernel for CPUs and takes it on GPUs only. It is offered here the way vLLM foresees, as one more
    provider of its operators: 556 verdicts a second instead of 469 (bfloat16, six rounds beside a server without it).
Where: this server's engine on CPUs.
Upstream: vllm-project/vllm#31643 (merged) turned the kernel off on CPUs together with one that computed wrong numbers;
    vllm-project/vllm#33825 (merged) brought the operators, with providers for GPUs.
Needed: tests/engine/test_cpu_norm.py::test_vllm_would_still_not_take_its_kernel_on_a_cpu
Until: vLLM has a provider of these operators for CPUs.
"""

from functools import lru_cache
from typing import Any

import torch
from vllm import ir
from vllm.platforms import current_platform

PROVIDER = "guard_cpu"

PRIORITY = {name: [PROVIDER, "native"] for name in ("rms_norm", "fused_add_rms_norm")}
"""This provider where it can, else vLLM's default."""

ARGUMENTS: dict[str, Any] = {"ir_op_priority": PRIORITY}
"""Arguments of the engine, which ask for it."""

LANES = 32
"""Numbers that the kernel takes at once, at most: a row must be made of whole lots."""


def install() -> None:
    """For every model that is built from now on in this process."""
    if PROVIDER in ir.ops.rms_norm.impls:
        return  # vLLM takes a provider once
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
