"""RMSNorm on CPUs by vLLM's kernel: the same numbers as vLLM's own way, which is taken wherever the kernel cannot."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from vllm import ir
from vllm.platforms import current_platform

from server.backends.vllm.mends import cpu_norm

pytestmark = pytest.mark.skipif(not current_platform.is_cpu(), reason="the kernel is for CPUs")

EPSILON = 1e-5
# In bfloat16 both round on the way, not at the same places: two last digits.
EXACT: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
COARSE: dict[str, Any] = {"rtol": 2**-6, "atol": 2**-6}
IN_BOTH_PRECISIONS = pytest.mark.parametrize(
    ("dtype", "near"), [(torch.float32, EXACT), (torch.bfloat16, COARSE)], ids=["float32", "bfloat16"]
)


@pytest.fixture(autouse=True, scope="module")
def installed():
    cpu_norm.install()
    yield
    for operator in (ir.ops.rms_norm, ir.ops.fused_add_rms_norm):
        del operator.impls[cpu_norm.PROVIDER]


def numbers(rows: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, what is added to them, and a weight."""
    generator = torch.Generator().manual_seed(rows * width)
    rows_of_numbers, added, weight = (
        (3 * torch.randn(shape, generator=generator)).to(dtype) for shape in ((rows, width), (rows, width), (width,))
    )
    return rows_of_numbers, added, weight


@IN_BOTH_PRECISIONS
@pytest.mark.parametrize(("rows", "width"), [(1, 32), (1, 128), (37, 128), (1900, 128), (5, 5120)])
def test_numbers_are_those_of_vllms_own_way(rows, width, dtype, near):
    x, residual, weight = numbers(rows, width, dtype)
    with ir.ops.rms_norm.set_priority(cpu_norm.PRIORITY["rms_norm"]):
        assert ir.ops.rms_norm.dispatch(x, weight, EPSILON).provider == cpu_norm.PROVIDER
        normed = ir.ops.rms_norm(x, weight, EPSILON)
    torch.testing.assert_close(normed, ir.ops.rms_norm.impls["native"].impl_fn(x, weight, EPSILON), **near)

    expected = ir.ops.fused_add_rms_norm.impls["native"].impl_fn(x.clone(), residual.clone(), weight, EPSILON)
    with ir.ops.fused_add_rms_norm.set_priority(cpu_norm.PRIORITY["fused_add_rms_norm"]):
        assert ir.ops.fused_add_rms_norm.dispatch(x, residual, weight, EPSILON).provider == cpu_norm.PROVIDER
        summed = ir.ops.fused_add_rms_norm.maybe_inplace(x, residual, weight, EPSILON)
    for one, other in zip(summed, expected, strict=True):
        torch.testing.assert_close(one, other, **near)


@IN_BOTH_PRECISIONS
def test_rows_without_a_weight_are_those_of_vllms_own_way(dtype, near):
    """Llama 4's queries and keys."""
    x, _, _ = numbers(37, 128, dtype)
    with ir.ops.rms_norm.set_priority(cpu_norm.PRIORITY["rms_norm"]):
        assert ir.ops.rms_norm.dispatch(x, None, EPSILON).provider == cpu_norm.PROVIDER
        normed = ir.ops.rms_norm(x, None, EPSILON)
    torch.testing.assert_close(normed, ir.ops.rms_norm.impls["native"].impl_fn(x, None, EPSILON), **near)


def test_rows_with_gaps_between_them_are_read_right():
    x, _, weight = numbers(7, 256, torch.float32)
    part, weight = x[:, 64:192], weight[:128]
    with ir.ops.rms_norm.set_priority(cpu_norm.PRIORITY["rms_norm"]):
        normed = ir.ops.rms_norm(part, weight, EPSILON)
    torch.testing.assert_close(normed, ir.ops.rms_norm.impls["native"].impl_fn(part, weight, EPSILON), **EXACT)


@pytest.mark.parametrize(
    "change",
    [
        lambda x, residual, weight: (x[:, :40], residual[:, :40], weight[:40]),
        lambda x, residual, weight: (x.bfloat16(), residual.bfloat16(), weight),
    ],
    ids=["40 numbers a row", "another precision"],
)
def test_what_the_kernel_cannot_is_left_to_vllm(change):
    x, residual, weight = change(*numbers(3, 64, torch.float32))
    with ir.ops.rms_norm.set_priority(cpu_norm.PRIORITY["rms_norm"]):
        assert ir.ops.rms_norm.dispatch(x, weight, EPSILON).provider == "native"
    with ir.ops.fused_add_rms_norm.set_priority(cpu_norm.PRIORITY["fused_add_rms_norm"]):
        assert ir.ops.fused_add_rms_norm.dispatch(x, residual, weight, EPSILON).provider == "native"


def test_sums_without_a_weight_are_left_to_vllm():
    x, residual, _ = numbers(3, 64, torch.float32)
    with ir.ops.fused_add_rms_norm.set_priority(cpu_norm.PRIORITY["fused_add_rms_norm"]):
        assert ir.ops.fused_add_rms_norm.dispatch(x, residual, None, EPSILON).provider == "native"


def test_sums_with_gaps_between_their_rows_are_left_to_vllm():
    x, residual, weight = numbers(3, 128, torch.float32)
    with ir.ops.fused_add_rms_norm.set_priority(cpu_norm.PRIORITY["fused_add_rms_norm"]):
        found = ir.ops.fused_add_rms_norm.dispatch(x[:, :64], residual[:, :64], weight[:64], EPSILON)
    assert found.provider == "native"


def test_vllm_would_still_not_take_its_kernel_on_a_cpu():
    """When this fails, vLLM does it by itself, and cpu_norm.py can go."""
    judge = (
        "from vllm import ir; import vllm.kernels.vllm_c;"
        "print(ir.ops.rms_norm.supported_providers(), ir.ops.fused_add_rms_norm.supported_providers())"
    )
    done = subprocess.run([sys.executable, "-c", judge], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "['native'] ['native']"


def test_this_servers_engine_asks_for_it(pocket_backend):
    asked = pocket_backend.engine.vllm_config.kernel_config.ir_op_priority
    assert asked.rms_norm == asked.fused_add_rms_norm == [cpu_norm.PROVIDER, "native"]
