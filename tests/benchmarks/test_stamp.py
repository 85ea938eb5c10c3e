"""What figures belong to."""

import platform
from pathlib import Path

import pytest
import torch

from benchmarks import stamp


def machine(monkeypatch: pytest.MonkeyPatch, **capabilities: bool) -> str:
    monkeypatch.setattr(stamp, "_cpu_model", lambda: "AMD EPYC")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    cpu: str = stamp.stamp()["machine"]["cpu"]
    return cpu


def test_two_generations_of_one_name_are_two_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    newer = machine(monkeypatch, avx2=True, avx512_f=True, avx512_bf16=True)
    older = machine(monkeypatch, avx2=True, avx512_f=False, avx512_bf16=False)
    assert (newer, older) == ("AMD EPYC with avx512_bf16", "AMD EPYC with avx2")


def test_a_cpu_of_which_nothing_is_known_has_its_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine(monkeypatch) == "AMD EPYC"


@pytest.mark.parametrize(
    ("information", "model"),
    [
        (
            "cpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n\nprocessor\t: 1\nmodel\t\t: 18\n",
            "AMD EPYC family 25 model 17",
        ),
        ("processor\t: 0\nBogoMIPS\t: 243.75\n", "aarch64"),  # Arm's kernels say neither
    ],
)
def test_a_model_is_told_with_its_generation(monkeypatch: pytest.MonkeyPatch, information: str, model: str) -> None:
    monkeypatch.setattr(Path, "exists", lambda _: True)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: information)
    monkeypatch.setattr(platform, "processor", lambda: "aarch64")
    assert stamp._cpu_model() == model
