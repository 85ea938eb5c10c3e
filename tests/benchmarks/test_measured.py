"""Tables of what was measured, on records of our own."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import measured
from benchmarks.goals import CACHED, SERVERS
from benchmarks.measured import shown, span
from benchmarks.records import Record


def figures(ratio: float, per_s: float = 100.0) -> dict[str, Any]:
    return {
        "verdicts_per_s": per_s,
        "p99_ms": 50.0,
        "forward_passes": 1.0,
        "cpu_ms": {"front": 0.5, "engine": 2.0, "worker": 1.0},
        "ratio": {"verdicts_per_s": [ratio, ratio - 0.5, ratio + 0.5], "p99_ms": [0.4, 0.3, 0.7]},
    }


def record(day: int, *loads: str, ratio: float = 2.5, machine: str = "epyc-zen4-avx2", **contenders: Any) -> Record:
    names = (*SERVERS, *CACHED)
    sections = [
        {
            "load": load,
            "concurrency": 32,
            "rate": None,
            "contenders": {name: figures(ratio) for name in names} | {"vllm": figures(1.0, 40.0)} | contenders,
        }
        for load in loads
    ]
    run = {
        "date": f"2026-11-{day:02}T00:00:00Z",
        "commit": "abc",
        "dirty": day == 3,
        "machine": {"cpu": "some", "cores": 2, "gpu": []},
        "options": {"contenders": "guard,vllm,floor"},
        "model": {"name": "pocket", "engine": {"dtype": "float32"}},
        "sections": sections,
    }
    return Record(Path(f"2026-11-{day:02}-{machine}-pocket"), machine, "pocket", run)


ALL = ("short", "repeated", "image1", "image3")


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Any:
    def replace(*given: Record) -> None:
        monkeypatch.setattr(measured, "known", lambda: given)

    return replace


def test_the_newest_whole_run_of_a_machine_is_shown_though_it_is_worse(known: Any) -> None:
    best, newest, part = record(1, *ALL, ratio=30), record(2, *ALL, ratio=1.9), record(3, "short")
    other = record(1, "short", machine="a-machine")
    known(best, newest, part, other)
    assert shown("pocket") == [other, newest]
    assert shown("small") == []


def test_what_misses_its_goal_is_bold_and_counted(known: Any) -> None:
    known(record(1, *ALL, ratio=1.75))
    row = measured.machines().splitlines()[-1]
    assert "**1.75** / **1.75** | 0.40 / 0.40 | 0.50 / 0.50 | **1.75** / **1.75** | 1.75 / 1.75 | 1.75 / 1.75 |" in row
    said = " ".join(measured.headline().split())
    assert "8 of the 12 figures in the table below meet theirs" in said
    assert "chats × vLLM on AMD EPYC Zen 4, AVX2 only (1.75 / 1.75)" in said
    known(record(1, *ALL, ratio=11))
    assert "12 of the 12 figures in the table below meet theirs.**\n" in measured.headline()
    assert "**" not in measured.machines()


def test_all_runs_of_a_machine_and_their_worst_round_are_told(known: Any) -> None:
    known(record(1, "short", ratio=2.0), record(2, *ALL, ratio=3.0))
    assert measured.runs().splitlines()[2:] == [
        "| AMD EPYC Zen 4, AVX2 only | 2026-11-01 to 2026-11-02 | 2 | 2.00 to 3.00 | 1.50 | 0.40 | 0.70 |"
    ]


def test_what_was_not_measured_is_a_dash(known: Any) -> None:
    known(record(1, "short"))
    assert measured.machines().splitlines()[-1].endswith("| 2.50 / 2.50 | 0.40 / 0.40 | 0.50 / 0.50 | - | - | - |")
    # The engine of both and vLLM's model in a process of its own; no bare engine.
    assert measured.servers().splitlines()[-1].endswith("| 40.0 | - | - | 50.0 / 50.0 | 50.0 | 3.00 / 3.00 | 3.00 |")


def test_another_number_of_callers_is_no_measure_of_the_goals(known: Any) -> None:
    known(record(1, "short", "image1"))
    measured.known()[0].run["sections"][0]["concurrency"] = 1
    assert shown("pocket") == []
    assert measured.index().splitlines()[-1].endswith("| short, image1 | - | - | - | abc |")


def test_each_rate_of_arrivals_has_its_rows(known: Any) -> None:
    run = record(1, "short", "short", "short")
    for section, rate in zip(run.run["sections"], (None, 50.0, 90.0), strict=True):
        section["rate"] = rate
        for each in section["contenders"].values():
            each["goodput_per_s"] = each["p50_ms"] = 1.0
    known(run)
    rows = measured.open_loop().splitlines()[2:]
    assert len(rows) == 2 * 5
    assert [row.split(" | ")[1:3] for row in rows[::5]] == [
        ["this server, moderations", "50.0"],
        ["this server, moderations", "90.0"],
    ]


def test_the_index_has_every_record_the_newest_first_with_its_commit(known: Any) -> None:
    known(record(1, "short"), record(3, "short", "image1"))
    first, second = measured.index().splitlines()[2:]
    assert first.startswith("| [2026-11-03-epyc-zen4-avx2-pocket](2026-11-03-epyc-zen4-avx2-pocket/run.json) |")
    assert "| guard, vllm, bare-engine | short, image1 |" in first
    assert first.endswith("| abc with changes |")
    assert second.endswith("| abc |")


def test_a_span_of_what_looks_the_same_is_one_number() -> None:
    assert [span(values) for values in ([], [None], [2.0, 1.0, None], [1.001, 1.002])] == [
        "-",
        "-",
        "1.00 to 2.00",
        "1.00",
    ]
