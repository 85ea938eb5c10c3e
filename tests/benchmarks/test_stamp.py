"""What figures belong to."""

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
