"""From slices to figures, and from figures to the table that a person reads."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.comparison import Section, Slice
from benchmarks.contenders import BARE_ENGINE, BASELINE
from benchmarks.figures import percentile, ratios, timely_share
from benchmarks.traffic import Load

ROLES = ("front", "engine", "worker", "gateway", "load")


def figures_of(slices: Sequence[Slice], load: Load) -> dict[str, Any]:
    """The figures of one contender in one section, all rounds together. Times in ms; NaN where nothing was seen."""
    latencies = [latency for each in slices for latency in each.outcome.latencies_ms]
    errors: dict[str, int] = {}
    for each in slices:
        for kind, count in each.outcome.errors.items():
            errors[kind] = errors.get(kind, 0) + count
    window = sum(each.outcome.window_s for each in slices)
    answered = sum(each.outcome.answered for each in slices)
    per_s = _ratio(sum(each.outcome.verdicts for each in slices), window)
    timely = timely_share(latencies, sum(errors.values()), load.goodput_limit_ms)
    figures: dict[str, Any] = {
        "verdicts_per_s": per_s,
        "verdicts_per_s_by_round": [each.verdicts_per_s for each in slices],
        "p50_ms": percentile(latencies, 0.5),
        "p90_ms": percentile(latencies, 0.9),
        "p99_ms": percentile(latencies, 0.99),
        "p99_ms_by_round": [_p99(each) for each in slices],
        "goodput_limit_ms": load.goodput_limit_ms,
        "timely_share": timely,
        "goodput_per_s": per_s * timely,
        "requests": sum(each.outcome.asked for each in slices),
        "in_window": len(latencies),
        "unsafe": sum(each.outcome.unsafe for each in slices),
        "errors": errors,
        "cpu_ms": {
            role: _ratio(1000 * sum(each.cpu_s.get(role, 0.0) for each in slices), answered)
            for role in sorted({role for each in slices for role in each.cpu_s})
        },
        "load_generator_busy": _ratio(sum(each.cpu_s["load"] for each in slices), window),
        "load_generator_lag_ms": max(each.outcome.lag_ms for each in slices),
    }
    counted = [each.engine for each in slices if each.engine is not None]
    if counted:
        figures |= {
            "prompt_tokens": _ratio(sum(each.prompt_tokens for each in counted), answered),
            "computed_tokens": _ratio(sum(each.computed_tokens for each in counted), answered),
            "forward_passes": _ratio(sum(each.generated_tokens for each in counted), answered),
            "engine_requests": _ratio(sum(each.finished for each in counted), answered),
            "engine_steps": _ratio(sum(each.steps for each in counted), answered),
        }
    return figures


def results_of(section: Section) -> dict[str, Any]:
    """A section as data: figures by contender, and the ratios of its rounds to those of BASELINE and BARE_ENGINE."""
    contenders: dict[str, Any] = {}
    for name in section.contenders:
        own = section.of(name)
        contenders[name] = figures_of(own, section.load)
        for key, other in (("ratio", BASELINE), ("bare_engine_ratio", BARE_ENGINE)):
            if theirs := section.of(other):
                contenders[name][key] = {
                    "verdicts_per_s": ratios(
                        [each.verdicts_per_s for each in own], [each.verdicts_per_s for each in theirs]
                    ),
                    "p99_ms": ratios([_p99(each) for each in own], [_p99(each) for each in theirs]),
                }
    return {
        "load": section.load.name,
        "shares": dict(section.load.shares),
        "concurrency": section.concurrency,
        "rate": section.rate,
        "contenders": contenders,
    }


def _p99(each: Slice) -> float:
    return percentile(each.outcome.latencies_ms, 0.99)


def _ratio(sum_: float, count: float) -> float:
    return sum_ / count if count > 0 else math.nan


# --- The table -------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """About three digits; a dash for what was not seen."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def spread(values: Sequence[float]) -> str:
    return "{} ({}-{})".format(*map(number, values)) if values else "-"


def table(title: str, contenders: Mapping[str, Any]) -> str:
    """One section for a person."""
    rows: list[tuple[str, ...]] = [
        (
            *("contender", "verdicts/s", "x vllm", "p50", "p90", "p99", "x vllm", "goodput/s", "errors", "unsafe"),
            *("computed", "passes", "steps", *ROLES, "limit"),
        )
    ]
    for name, f in contenders.items():
        ratio = f.get("ratio", {})
        rows.append(
            (
                *(name, number(f["verdicts_per_s"]), spread(ratio.get("verdicts_per_s", ()))),
                *(number(f[key]) for key in ("p50_ms", "p90_ms", "p99_ms")),
                *(spread(ratio.get("p99_ms", ())), number(f["goodput_per_s"])),
                *(str(sum(f["errors"].values())), str(f["unsafe"])),
                *(number(f.get(key)) for key in ("computed_tokens", "forward_passes", "engine_steps")),
                *(number(f["cpu_ms"].get(role)) for role in ROLES),
                number(f.get("most_verdicts_per_s")),
            )
        )
    if not any("most_verdicts_per_s" in f for f in contenders.values()):
        rows = [row[:-1] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.rjust(width) if at else cell.ljust(width) for at, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    ]
    return "\n".join([f"\n{title}", *lines])


COLUMNS = """
verdicts/s       answers that were verdicts, per second; the warm-up and the end of each turn are left out
p50 p90 p99      latency in ms as the caller sees it, all rounds together; open loop: from when it should have left
x vllm           ratio to vLLM's own server, median of the rounds (least-greatest)
goodput/s        verdicts per second that came within 100 ms (text) or 500 ms (loads with images)
errors           answers that were no verdict, of all that was asked, warm-up too; unsafe: verdicts that say so
computed         prompt tokens computed per verdict: those that the prefix cache did not have
passes           forward passes per verdict: the tokens that the engine generated for it
steps            engine steps per verdict; a step works on several requests at once
front ... load   CPU ms per verdict by process: HTTP server, engine core, model worker, gateway, load generator
limit            the most verdicts/s that this card could do (roofline), for the tokens that were computed"""
