"""What this server aims at on two cores with a small model, and whether a run meets it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.contenders import BARE_ENGINE
from benchmarks.records import GATEWAYS

SERVERS = ("guard-moderations", "guard-chat")
CACHED = ("guard-cached-moderations", "guard-cached-chat")
RATE = "verdicts_per_s"

LEAST_RATIO, MOST_P99_RATIO, MOST_CPU_MS = 2.0, 0.5, 0.6
"""For 32 short chats at once: verdicts a second and p99 over those of vLLM's server, and CPU ms outside the engine."""

LEAST_CACHED_RATIO, LEAST_IMAGES_RATIO = 10.0, 1.5
"""Verdicts a second over those of vLLM's server: from the verdict cache on repeated content, and with images."""


@dataclass(frozen=True, slots=True)
class Goal:
    """`measured` is None where the run could not tell."""

    what: str
    contender: str
    wanted: str
    measured: float | None
    verdict: Literal["met", "not met", "not measured", "shown"]


def goals(sections: Sequence[Mapping[str, Any]], preamble_tokens: int, block_size: int | None) -> list[Goal]:
    """The goals for text, the cache and images, each for both dialects; then figures to compare them with."""
    short, repeated = _find(sections, "short", 32), _find(sections, "repeated")
    found: list[Goal] = []

    def least(what: str, contender: str, bound: float, value: float | None) -> None:
        found.append(_goal(what, contender, f">= {bound:g}", value, value is not None and value >= bound))

    def most(what: str, contender: str, bound: float, value: float | None) -> None:
        found.append(_goal(what, contender, f"<= {bound:g}", value, value is not None and value <= bound))

    for name in SERVERS:
        figures = short.get(name, {})
        least("verdicts/s over vllm's, 32 short chats", name, LEAST_RATIO, _median(figures, RATE))
        most("p99 over vllm's, 32 short chats", name, MOST_P99_RATIO, _median(figures, "p99_ms"))
        most("CPU ms a request outside the engine", name, MOST_CPU_MS, figures.get("cpu_ms", {}).get("front"))
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
            LEAST_CACHED_RATIO,
            _median(repeated.get(name, {}), RATE),
        )
    images = [section for section in sections if section["load"].startswith("image") and section["rate"] is None]
    for section in images or [{"load": "image1", "contenders": {}}]:
        for name in SERVERS:
            ratio = _median(section["contenders"].get(name, {}), RATE)
            least(f"verdicts/s over vllm's, {section['load']}", name, LEAST_IMAGES_RATIO, ratio)
    # No goals, but figures that show what the goals are worth on this machine.
    found.extend(
        _shown("verdicts/s over vllm's, 32 short chats", name, _median(short.get(name, {}), RATE))
        for name in (*GATEWAYS, BARE_ENGINE)
    )
    bare = short.get(BARE_ENGINE, {})
    found.append(_shown("p99 over vllm's, 32 short chats", BARE_ENGINE, _median(bare, "p99_ms")))
    found.append(_shown("CPU ms a request outside the engine", BARE_ENGINE, bare.get("cpu_ms", {}).get("front")))
    found.extend(
        _shown("verdicts/s over the bare engine's, 32 short chats", name, _median(figures, RATE, "bare_engine_ratio"))
        for name, figures in ((name, short.get(name, {})) for name in SERVERS)
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
            figures: Mapping[str, Any] = section["contenders"]
            return figures
    return {}


def _median(figures: Mapping[str, Any], figure: str, over: str = "ratio") -> float | None:
    ratio = figures.get(over, {}).get(figure, [])
    return ratio[0] if ratio else None
