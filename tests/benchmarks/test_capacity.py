"""Cards, costs and break-even, from the limit and from a result; and the pages that show them."""

import json
from dataclasses import replace
from typing import Any

import pytest

from benchmarks import capacity, records
from benchmarks.capacity import (
    OPENROUTER_DAY,
    Speed,
    break_even_verdicts_per_day,
    calculated,
    cards_needed,
    cpu_cores,
    dollars_per_million_tokens,
    dollars_per_million_verdicts,
    measured,
)
from benchmarks.roofline import DEVICES, LLAMA_GUARD_4, REACHED, Load, most_verdicts_per_second

H100, L4 = DEVICES["h100"], DEVICES["l4"]
CARD = Speed("a card", 100.0, 300.0, 0.0, "made up")


def section(load: str, speed: float, rate: float | None = None) -> dict[str, Any]:
    """One section of a result, as `python -m benchmarks` writes it, as far as it is read."""
    figures = {
        "verdicts_per_s": speed,
        "requests": 200,
        "unsafe": 50,
        "prompt_tokens": 320.0,
        "cpu_ms": {"front": 1.5, "engine": 3.0},
    }
    return {"load": load, "rate": rate, "contenders": {"guard-moderations": figures, "transformers": {**figures}}}


RESULT = {
    "machine": {"gpu": ["NVIDIA H100 80GB HBM3, 81559, 580"], "cores": 16},
    "date": "2026-11-24T12:00:00Z",
    "model": {"name": "full"},
    "sections": [
        section("short", 90.0),
        section("short", 150.0),
        section("short", 999.0, rate=9),
        section("long", 20.0),
    ],
}


# --- Speed -----------------------------------------------------------------------------------------------


def test_a_calculated_speed_is_a_share_of_the_limit():
    most = most_verdicts_per_second(LLAMA_GUARD_4, H100, "bf16", Load(100))
    speed = calculated(H100, "bf16", Load(100), efficiency=0.6)
    assert speed.verdicts_per_s == pytest.approx(0.6 * most)
    assert "calculated: 60%" in speed.origin


def test_a_vendors_peak_counts_for_what_is_reached_of_it():
    most = most_verdicts_per_second(LLAMA_GUARD_4, L4, "fp8", Load(100))
    assert calculated(L4, "fp8", Load(100), efficiency=0.5).verdicts_per_s == pytest.approx(0.5 * REACHED * most)


def test_a_measured_speed_is_the_highest_of_the_closed_loops():
    speed, front_ms = measured(RESULT, "short", "guard-moderations")
    assert (speed.verdicts_per_s, speed.prompt_tokens, front_ms) == (150, 320, 1.5)
    assert speed.completion_tokens == 3 + 0.25 * 5
    assert speed.card.startswith("NVIDIA H100")
    assert speed.origin == "measured: short, guard-moderations, model full, 2026-11-24T12:00:00Z"


def test_a_machine_without_a_gpu_is_called_one():
    without = {**RESULT, "machine": {"gpu": [], "cores": 2}}
    assert measured(without, "short", "guard-moderations")[0].card == "2 cores, no GPU"


def test_what_was_not_measured_is_refused_with_what_was():
    with pytest.raises(ValueError, match=r"no image1 vllm, but long guard-moderations, long transformers, short guard"):
        measured(RESULT, "image1", "vllm")
    with pytest.raises(ValueError, match="no verdicts"):
        measured({**RESULT, "sections": [section("short", 0.0)]}, "short", "guard-moderations")
    with pytest.raises(ValueError, match="no sections"):
        measured({}, "short", "guard-moderations")


# --- The questions of an operator ------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "cards"), [(1, 2), (70, 2), (71, 3), (10_000, 144)])
def test_cards_have_room_for_bursts_and_one_to_spare(rate, cards):
    assert cards_needed(rate, CARD, utilisation=0.7, spares=1) == cards


def test_costs_of_a_card():
    # 100 a second at one half: 180,000 verdicts an hour.
    assert dollars_per_million_verdicts(CARD, 1.8, utilisation=0.5) == pytest.approx(10)
    assert dollars_per_million_tokens(CARD, 1.8, utilisation=0.5) == pytest.approx(10 / 300)


def test_at_break_even_both_cost_the_same():
    volume = break_even_verdicts_per_day(CARD, 2.0, cards=2)
    assert volume * CARD.tokens * 0.18 / 1e6 == pytest.approx(2 * 2.0 * 24)
    # A card that is kept exactly as busy as that has the host's price a token.
    busy = volume / 2 / (86_400 * CARD.verdicts_per_s)
    assert dollars_per_million_tokens(CARD, 2.0, utilisation=busy) == pytest.approx(0.18)


def test_break_even_does_not_depend_on_the_speed():
    assert break_even_verdicts_per_day(CARD, 2) == break_even_verdicts_per_day(replace(CARD, verdicts_per_s=1), 2)


def test_cores_for_the_front():
    assert cpu_cores(1000, cpu_ms=0.7, utilisation=0.7) == pytest.approx(1)


def test_the_published_day():
    assert OPENROUTER_DAY.dollars == pytest.approx(27.6, abs=0.05)
    assert OPENROUTER_DAY.verdicts_per_s == pytest.approx(5.4, abs=0.05)
    assert OPENROUTER_DAY.load.prompt_tokens(LLAMA_GUARD_4) == pytest.approx(330, abs=3)
    # Without a prefix cache, at 70 %: 31,000 prompt tokens a second were published.
    bare = replace(OPENROUTER_DAY.load, cached_tokens=0)
    speed = calculated(H100, "bf16", bare, efficiency=0.7)
    assert speed.verdicts_per_s * speed.prompt_tokens == pytest.approx(31_000, rel=0.03)


# --- The command -----------------------------------------------------------------------------------------


def test_the_command_calculates(capsys):
    capacity.main(["--tokens", "20", "--images", "336x336", "--device", "h100", "--price-per-hour", "2", "4"])
    printed = capsys.readouterr().out
    assert "calculated: 65% of the physical limit" in printed
    assert "at $4 an hour" in printed
    assert "10,000 requests/s" in printed


def test_the_command_says_when_a_card_cannot_carry_what_it_would_take(capsys):
    capacity.main(["--device", "l4", "--price-per-hour", "20"])
    assert "renting is cheaper at any volume" in capsys.readouterr().out


def test_the_command_reads_a_result(tmp_path, capsys):
    (tmp_path / "result.json").write_text(f"a table for people\n{json.dumps(RESULT)}\n")
    capacity.main(["--result", str(tmp_path / "result.json"), "--requests", "7000"])
    printed = capsys.readouterr().out
    assert "(measured" in printed
    assert "calculated" not in printed
    # The result's own CPU time: 7000 x 1.5 ms / 0.7.
    assert "15.00 cores" in printed


def test_the_command_reads_a_record(tmp_path, capsys):
    (tmp_path / "run.json").write_text(json.dumps(RESULT, indent=2))
    capacity.main(["--result", str(tmp_path / "run.json"), "--requests", "7000"])
    assert "15.00 cores" in capsys.readouterr().out


def test_the_cpu_time_that_is_planned_with_is_that_of_its_record():
    run = records.read(records.RESULTS / capacity.CPU_RECORD).run
    _, text = measured(run, "short", "guard-moderations")
    _, image = measured(run, "image1", "guard-moderations")
    assert (round(text, 1), round(image)) == (capacity.CPU_MS, capacity.LARGE_IMAGE_CPU_MS)


@pytest.mark.parametrize("content", ["", "no JSON\n", '{"sections": []}\n', "[]\n", '{"sections": [1]}\n'])
def test_the_command_refuses_what_is_no_result(tmp_path, capsys, content):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(SystemExit):
        capacity.main(["--result", str(tmp_path / "result.json")])
    assert "error" in capsys.readouterr().err
