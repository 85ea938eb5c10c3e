"""A soak finds what it looks for, and says nothing about growth after a few seconds."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import soak, soak_figures
from benchmarks.soak_figures import LEAST_S, Sample, Soaked, Target, report, slope, targets
from benchmarks.soak_traffic import Tally

HOUR = 3600.0


def sample(at_s: float, mib: float, descriptors: int = 40) -> Sample:
    return Sample(
        at_s, {"front": mib, "engine": 1000.0}, {"front": descriptors, "engine": 7}, {"front": 9, "engine": 3}
    )


def soaked(growth_mib: float = 0.0, seconds: float = HOUR, **changes: Any) -> Soaked:
    """One in which the memory of the front grows by so much, in a straight line."""
    samples = [sample(seconds * part / 100, 1000 + growth_mib * part / 100) for part in range(101)]
    found = Soaked(Tally(), samples[0], seconds, after=samples[-1], samples=samples, health_ms=[1.0])
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def missed(found: Soaked) -> list[str]:
    return [target.name for target in targets(found) if target.met is False]


def test_a_slope_is_in_percent_of_the_start_an_hour() -> None:
    growth, error = slope([0.0, 0.5, 1.0], [200.0, 201.0, 202.0])
    assert growth == pytest.approx(1.0)
    assert error == pytest.approx(0.0, abs=1e-9)
    assert slope([0.0, 0.5, 1.0], [200.0, 230.0, 202.0])[1] > 1
    assert all(math.isnan(value) for value in slope([0.0, 1.0], [1.0, 2.0]))


@pytest.mark.parametrize(("growth_mib", "names"), [(0.0, []), (19.0, []), (21.0, ["memory, percent an hour"])])
def test_memory_may_grow_by_one_percent_an_hour(growth_mib: float, names: list[str]) -> None:
    assert missed(soaked(growth_mib)) == names


def test_a_short_run_has_no_target_for_memory() -> None:
    memory = targets(soaked(500.0, seconds=LEAST_S - 1))[0]
    assert memory.met is None
    assert "needs 30 minutes" in report(soaked(500.0, seconds=LEAST_S - 1))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"tally": Tally(wrong=Counter({"false safe": 1}))}, "false safe"),
        ({"tally": Tally(wrong=Counter({"false unsafe": 1}))}, "false unsafe"),
        ({"tally": Tally(wrong=Counter({"connection lost": 1}))}, "other wrong answers"),
        ({"tally": Tally({"chat": Counter({"200": 9, "503": 1})})}, "answers with 5xx"),
        ({"after": sample(HOUR, 1000.0, descriptors=41)}, "descriptors leaked"),
        ({"defects": ["Traceback"]}, "lines of the log about a defect"),
        ({"exit_status": -9}, "exit status"),
        ({"left_running": 1}, "processes left running"),
    ],
)
def test_each_fault_misses_its_target(changes: dict[str, Any], name: str) -> None:
    assert missed(soaked(**changes)) == [name]
    assert "| NO |" in report(soaked(**changes))


@pytest.mark.parametrize(
    ("unsafe", "known", "wrong"),
    [
        *((True, True, None), (False, False, None), (True, None, None)),
        *((False, True, "false safe"), (True, False, "false unsafe"), (None, None, "no verdict")),
    ],
)
def test_an_answer_is_compared_with_what_is_known(unsafe: bool | None, known: bool | None, wrong: str | None) -> None:
    tally = Tally()
    tally.compare(unsafe, known)
    assert dict(tally.wrong) == ({} if wrong is None else {wrong: 1})


def test_an_error_of_the_warm_up_counts_and_its_other_answers_do_not() -> None:
    tally = Tally({"chat": Counter({"200": 5})})
    tally.add(Tally({"chat": Counter({"200": 7, "500": 1})}, Counter({"no verdict": 2})))
    assert tally.statuses == {"chat": Counter({"200": 5, "500": 1})}
    assert tally.wrong == Counter({"no verdict": 2})


@pytest.mark.slow
def test_a_short_soak_of_a_real_server(tmp_path: Path) -> None:
    found = soak.run(tmp_path, warm_up_s=5, seconds=15, callers=4)
    held: dict[str, Target] = {target.name: target for target in soak_figures.targets(found)}
    # Connections to the database are opened as they are needed, and a warm-up of seconds does not need all of them.
    held.pop("descriptors leaked")
    assert {name: target.value for name, target in held.items() if target.met is False} == {}
    assert found.tally.requests > 100
    assert set(found.tally.statuses) >= {"moderations", "chat", "streams", "nonsense", "dropped", "half sent"}
    assert {"front", "engine"} <= set(found.before.rss)
