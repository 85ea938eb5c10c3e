"""Records have readable names, fit them, and are never overwritten."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.records import FILE, KINDS, RESULTS, machine_of, read, read_all, what_of, write

EVERY_RECORD = [record for kind in KINDS for record in read_all(kind=kind)]
ZEN_4 = "AMD EPYC family 25 model 17 with avx2"


def result(contender: str = "vllm", rate: float | None = None, **options: Any) -> dict[str, Any]:
    """As far as records look at it."""
    return {
        "date": "2026-11-29T20:25:19Z",
        "commit": "652b4c7",
        "dirty": False,
        "machine": {"gpu": [], "cpu": ZEN_4, "cores": 2},
        "options": {"model": "pocket", **options},
        "model": {"name": "pocket"},
        "sections": [
            {"load": "short", "concurrency": 32, "rate": rate, "contenders": {contender: {"verdicts_per_s": 1.0}}}
        ],
    }


def test_every_record_fits_its_name() -> None:
    found = EVERY_RECORD
    assert {record.folder for record in found} == {file for file in RESULTS.iterdir() if file.is_dir()}
    for kind in KINDS:
        dates = [record.date for record in read_all(kind=kind)]
        assert dates == sorted(dates)


def test_records_hold_nothing_but_a_run_and_its_plots_and_are_indented() -> None:
    for record in EVERY_RECORD:
        names = {file.name for file in record.folder.iterdir()}
        assert FILE in names
        assert all(name == FILE or re.fullmatch(r"loads\.png|\w+-arrivals\.png", name) for name in names)
        text = (record.folder / FILE).read_text(encoding="utf-8")
        assert text == json.dumps(json.loads(text), indent=2) + "\n"


def test_a_run_gets_a_folder_of_its_own_and_overwrites_none(tmp_path: Path) -> None:
    first, second = result(), result(rounds=9)
    folders = [write(each, tmp_path / "results") for each in (first, second, first)]
    name = "2026-11-29-epyc-zen4-avx2-pocket"
    assert [folder.name for folder in folders] == [name, f"{name}-2", f"{name}-3"]
    assert [json.loads((folder / FILE).read_text()) for folder in folders] == [first, second, first]


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    write(result(), tmp_path)
    write(result(), tmp_path)
    for record in read_all(tmp_path):
        assert (record.machine, record.what, record.commit) == ("epyc-zen4-avx2", "pocket", "652b4c7")
        assert record.figures("short") == {"vllm": {"verdicts_per_s": 1.0}}
        assert record.figures("short", 32) == record.figures("short")
        assert record.figures("long") == record.figures("short", 1) == {}
    assert read(write(result(rate=9.0), tmp_path)).figures("short") == {}


@pytest.mark.parametrize(
    "name",
    [
        "2026-11-28-epyc-zen4-avx2-pocket",
        "2026-11-29-epyc-zen4-avx2-small",
        "2026-11-29-pocket",
        "2026-11-29-epyc-zen4-avx2-pocket-again",
    ],
)
def test_a_name_that_does_not_fit_its_record_is_refused(tmp_path: Path, name: str) -> None:
    write(result(), tmp_path).rename(tmp_path / name)
    with pytest.raises(ValueError, match="should be called 2026-11-29-MACHINE-pocket"):
        read(tmp_path / name)


def test_old_records_are_read_with_the_names_of_today(tmp_path: Path) -> None:
    old = result("floor")
    old["sections"][0]["contenders"]["guard-chat"] = {"floor_ratio": {"p99_ms": [1, 1, 1]}}
    figures = read(write(old, tmp_path)).figures("short")
    assert set(figures) == {"bare-engine", "guard-chat"}
    assert set(figures["guard-chat"]) == {"bare_engine_ratio"}


@pytest.mark.parametrize(
    ("run", "what"),
    [
        (result(), "pocket"),
        (result("litellm"), "pocket-gateways"),
        (result("nemo", rate=50.0), "pocket-gateways-open-loop"),
        (result(rate=50.0), "pocket-open-loop"),
        (result(model="small", layers=None) | {"model": {"name": "small-2x64-4-2-128"}}, "small"),
        (result(model="small", layers=4) | {"model": {"name": "small-4x64-4-2-128"}}, "small-4x64-4-2-128"),
        (result(model="Llama-Guard-4-12B") | {"model": {"name": "Llama-Guard-4-12B"}}, "llama-guard-4-12b"),
    ],
)
def test_a_record_says_what_was_run(run: dict[str, Any], what: str) -> None:
    assert what_of(run) == what


@pytest.mark.parametrize(
    ("cpu", "name"),
    [
        (ZEN_4, "epyc-zen4-avx2"),
        ("AMD EPYC 7763 64-Core Processor family 25 model 1 with avx2", "epyc-7763-zen3-avx2"),
        ("AMD EPYC family 26 model 2 with avx512_bf16", "epyc-zen5-avx512-bf16"),
        ("AMD EPYC family 27 model 2 with avx512_bf16", "epyc-family27-model2-avx512-bf16"),
        ("Intel(R) Xeon(R) Processor family 6 model 167 with amx_bf16", "xeon-model167-amx-bf16"),
        (
            "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz family 6 model 143 with amx_bf16",
            "xeon-platinum-8481c-sapphire-rapids-amx-bf16",
        ),
        ("aarch64", "aarch64"),
        ("", "unknown"),
    ],
)
def test_a_processor_has_a_short_name(cpu: str, name: str) -> None:
    assert machine_of({"gpu": [], "cpu": cpu}) == name


def test_a_card_names_the_machine() -> None:
    assert machine_of({"gpu": ["NVIDIA H100 80GB HBM3, 81559, 550.54"], "cpu": ZEN_4}) == "h100-80gb-hbm3"


def test_two_runs_that_end_together_take_two_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other run takes the name just before this one does."""
    make = Path.mkdir

    def mkdir(folder: Path, *arguments: Any, **options: Any) -> None:
        if folder.name.endswith("pocket") and not folder.exists():
            make(folder)
        make(folder, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert write(result(), tmp_path).name == "2026-11-29-epyc-zen4-avx2-pocket-2"
