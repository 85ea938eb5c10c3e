"""The goals of two cores and a small model, and whether what was measured meets them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.contenders import FLOOR

SERVERS = ("guard-moderations", "guard-chat")
CACHED = ("guard-cached-moderations", "guard-cached-chat")
GATEWAYS = ("litellm", "nemo")
RATE = "verdicts_per_s"


@dataclass(frozen=True, slots=True)
class Goal:
    """`measured` is None where the run could not tell."""

    what: str
    contender: str
    wanted: str
    measured: float | None
    verdict: Literal["met", "not met", "not measured", "shown"]


def goals(sections: Sequence[Mapping[str, Any]], preamble_tokens: int, block_size: int | None) -> list[Goal]:
    """In the order of the issue that set them, each for all dialects of this server."""
    short, repeated = _find(sections, "short", 32), _find(sections, "repeated")
    found: list[Goal] = []

    def least(what: str, contender: str, bound: float, value: float | None) -> None:
        found.append(_goal(what, contender, f">= {bound:g}", value, value is not None and value >= bound))

    def most(what: str, contender: str, bound: float, value: float | None) -> None:
        found.append(_goal(what, contender, f"<= {bound:g}", value, value is not None and value <= bound))

    for name in SERVERS:
        figures = short.get(name, {})
        least("verdicts/s over vllm's, 32 short chats", name, 2.0, _median(figures, RATE))
        most("p99 over vllm's, 32 short chats", name, 0.5, _median(figures, "p99_ms"))
        most("CPU ms a request outside the engine", name, 0.6, figures.get("cpu_ms", {}).get("front"))
        passes = figures.get("forward_passes")
        found.append(
            _goal("forward passes a safe text", name, "= 1", passes, passes is not None and round(passes, 3) == 1)
        )
        computed, prompt = figures.get("computed_tokens"), figures.get("prompt_tokens")
        if computed is None or prompt is None or block_size is None:
            found.append(_goal("prompt tokens computed", name, "message, tail and one block", None, False))
        else:
            most(
                "prompt tokens computed: message, tail, one block",
                name,
                prompt - preamble_tokens + block_size,
                computed,
            )
    for name in CACHED:
        least(
            "verdicts/s over vllm's, repeated content, cache on",
            name,
            10.0,
            _median(repeated.get(name, {}), RATE),
        )
    images = [section for section in sections if section["load"].startswith("image") and section["rate"] is None]
    for section in images or [{"load": "image1", "contenders": {}}]:
        for name in SERVERS:
            ratio = _median(section["contenders"].get(name, {}), RATE)
            least(f"verdicts/s over vllm's, {section['load']}", name, 1.5, ratio)
    # The floor: what the goals come to where nothing at all stands between uvicorn and the engine.
    found.extend(
        _shown("verdicts/s over vllm's, 32 short chats", name, _median(short.get(name, {}), RATE))
        for name in (*GATEWAYS, FLOOR)
    )
    floor = short.get(FLOOR, {})
    found.append(_shown("p99 over vllm's, 32 short chats", FLOOR, _median(floor, "p99_ms")))
    found.append(_shown("CPU ms a request outside the engine", FLOOR, floor.get("cpu_ms", {}).get("front")))
    found.extend(
        _shown("verdicts/s over the floor's, 32 short chats", name, _median(short.get(name, {}), RATE, "floor_ratio"))
        for name in SERVERS
    )
    return found


def lines(found: Sequence[Goal]) -> Iterator[str]:
    """For a person."""
    for goal in found:
        measured = "" if goal.measured is None else f"{goal.measured:.3g}"
        yield f"{goal.verdict:<13} {measured:>8} {goal.wanted:<28} {goal.what} ({goal.contender})"


def _goal(what: str, contender: str, wanted: str, measured: float | None, is_met: bool) -> Goal:
    return Goal(
        what, contender, wanted, measured, "not measured" if measured is None else "met" if is_met else "not met"
    )


def _shown(what: str, contender: str, value: float | None) -> Goal:
    return Goal(what, contender, "shown", value, "not measured" if value is None else "shown")


def _find(sections: Sequence[Mapping[str, Any]], load: str, concurrency: int | None = None) -> Mapping[str, Any]:
    """Figures by contender of the closed loop of a load, none if it was not run."""
    for section in sections:
        same = section["load"] == load and section["rate"] is None
        if same and concurrency in (None, section["concurrency"]):
            return section["contenders"]
    return {}


def _median(figures: Mapping[str, Any], figure: str, over: str = "ratio") -> float | None:
    ratio = figures.get(over, {}).get(figure, [])
    return ratio[0] if ratio else None
