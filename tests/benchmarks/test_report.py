import json
import math

import pytest

from benchmarks import plots
from benchmarks.__main__ import finite
from benchmarks.comparison import Section, Slice
from benchmarks.engine_counters import EngineCounters
from benchmarks.goals import goals
from benchmarks.load_generator import Outcome
from benchmarks.report import results_of, table
from benchmarks.traffic import LOADS, Load


def slice_of(contender: str, round_: int, verdicts: int, latencies: list[float], **changes) -> Slice:
    outcome = Outcome(latencies, {}, verdicts, 0, 110, 100, 2.0, 0.05, 0.0)
    for name, value in changes.items():
        setattr(outcome, name, value)
    cpu = {"front": 0.05, "worker": 0.4, "load": 0.05}
    return Slice(contender, round_, outcome, cpu, EngineCounters(30_000, 14_400, 100, 20, 100))


@pytest.fixture
def section() -> Section:
    slices = [
        slice_of("vllm", 0, 40, [40.0, 90.0, 200.0]),
        slice_of("guard-chat", 0, 100, [10.0, 20.0, 80.0]),
        slice_of("guard-chat", 1, 90, [10.0, 20.0, 100.0]),
        slice_of("vllm", 1, 30, [50.0, 90.0, 220.0], errors={"HTTP 500": 3}),
    ]
    return Section(Load("short", LOADS["short"]), 32, None, slices)


def test_figures_are_those_of_all_rounds(section):
    ours, theirs = results_of(section)["contenders"]["guard-chat"], results_of(section)["contenders"]["vllm"]
    assert ours["verdicts_per_s"] == 190 / 4
    assert (ours["p50_ms"], ours["p99_ms"]) == (20, 100)
    assert ours["cpu_ms"] == {"front": 0.5, "worker": 4.0, "load": 0.5}
    assert (ours["prompt_tokens"], ours["computed_tokens"]) == (300, 156)
    assert (ours["forward_passes"], ours["engine_steps"]) == (1.0, 0.2)
    assert ours["goodput_per_s"] == ours["verdicts_per_s"]
    # Of nine, two were late and three were no verdicts.
    assert theirs["goodput_per_s"] == pytest.approx(70 / 4 * 4 / 9)
    assert theirs["errors"] == {"HTTP 500": 3}


def test_ratios_compare_the_rounds_side_by_side(section):
    ratio = results_of(section)["contenders"]["guard-chat"]["ratio"]
    assert ratio["verdicts_per_s"] == [2.75, 2.5, 3.0]
    assert ratio["p99_ms"] == pytest.approx([(80 / 200 + 100 / 220) / 2, 80 / 200, 100 / 220])


def test_how_near_the_bare_engine_a_server_comes_is_shown(section):
    bare = [
        slice_of("bare-engine", at, verdicts, [10.0, p99]) for at, verdicts, p99 in ((0, 110, 40.0), (1, 120, 50.0))
    ]
    section = Section(section.load, 32, None, [*section.slices, *bare])
    figures = results_of(section)
    assert figures["contenders"]["guard-chat"]["bare_engine_ratio"]["verdicts_per_s"][1:] == [90 / 120, 100 / 110]
    shown = {(goal.what, goal.contender): goal.measured for goal in goals([figures], 146, 16)}
    assert shown["verdicts/s over the bare engine's, 32 short chats", "guard-chat"] == pytest.approx(
        (0.75 + 100 / 110) / 2
    )
    assert shown["verdicts/s over vllm's, 32 short chats", "bare-engine"] == pytest.approx((110 / 40 + 120 / 30) / 2)
    assert shown["CPU ms a request outside the engine", "bare-engine"] == 0.5


def test_the_table_shows_errors_and_what_was_never_measured(section):
    for each in section.slices:
        each.engine = None
    lines = table("short", results_of(section)["contenders"]).splitlines()
    assert lines[2].split()[0] == "contender"
    row = next(line for line in lines if line.startswith("vllm"))
    assert " 3 " in row
    assert " - " in row


def test_the_line_is_json_that_anyone_reads(section):
    section.slices[0].outcome.latencies_ms.clear()
    section.slices[3].outcome.latencies_ms.clear()
    result = finite({"sections": [results_of(section)]})
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["sections"][0]["contenders"]["vllm"]["p50_ms"] is None
    assert finite([math.inf, 0.123456, "x", 3, None]) == [None, 0.1235, "x", 3, None]


def test_goals_are_met_not_met_or_not_measured(section):
    found = {(goal.what, goal.contender): goal for goal in goals([results_of(section)], 146, 16)}
    reached = {what: goal.verdict for (what, contender), goal in found.items() if contender == "guard-chat"}
    assert reached == {
        "verdicts/s over vllm's, 32 short chats": "met",
        "p99 over vllm's, 32 short chats": "met",
        "CPU ms a request outside the engine": "met",
        "forward passes a safe text": "met",
        "prompt tokens computed: message, tail, one block": "met",
        "verdicts/s over vllm's, image1": "not measured",
        "verdicts/s over the bare engine's, 32 short chats": "not measured",
    }
    assert all(goal.verdict == "not measured" for (_, name), goal in found.items() if name != "guard-chat")


def test_a_preamble_that_is_computed_again_is_no_goal_met(section):
    section.slices[1].engine = section.slices[2].engine = EngineCounters(30_000, 0, 300, 20, 100)
    found = {goal.what: goal for goal in goals([results_of(section)], 146, 16) if goal.contender == "guard-chat"}
    assert found["prompt tokens computed: message, tail, one block"].verdict == "not met"
    assert found["forward passes a safe text"].verdict == "not met"


def test_other_concurrencies_and_arrivals_are_not_what_the_goals_are_about(section):
    for changed in (Section(section.load, 64, None, section.slices), Section(section.load, 32, 50.0, section.slices)):
        assert {goal.verdict for goal in goals([results_of(changed)], 146, 16)} == {"not measured"}


def test_plots_are_pictures(section, tmp_path):
    arrivals = [Section(section.load, 32, rate, section.slices) for rate in (20.0, 40.0)]
    result = {
        "model": {"name": "pocket"},
        "machine": {"gpu": [], "cpu": "some", "cores": 2},
        "commit": "abc",
        "dirty": True,
        "date": "2026-01-01T00:00:00Z",
        "sections": [results_of(each) for each in (section, *arrivals)],
    }
    files = plots.draw(result, tmp_path)
    assert [file.name for file in files] == ["loads.png", "short-arrivals.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
