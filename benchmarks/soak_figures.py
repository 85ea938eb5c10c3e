"""From samples and counts to the figures of a soak, and what they are held to."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.figures import percentile
from benchmarks.markdown import table
from benchmarks.report import number
from benchmarks.soak_traffic import Tally

MOST_SLOPE = 1.0
"""Percent an hour by which memory may grow."""

LEAST_S = 1800.0
"""A shorter run says nothing about growth in an hour: what the allocator does in minutes weighs more."""

KEPT_SAMPLES = 120
"""Samples that a record holds, at even distances."""


@dataclass(slots=True)
class Sample:
    """What the processes of a server held `at_s` seconds after the start, by role. Memory is resident, in MiB."""

    at_s: float
    rss: dict[str, float] = field(default_factory=dict)
    descriptors: dict[str, int] = field(default_factory=dict)
    threads: dict[str, int] = field(default_factory=dict)

    def add(self, role: str, rss: float, descriptors: int, threads: int) -> None:
        self.rss[role] = self.rss.get(role, 0.0) + rss
        self.descriptors[role] = self.descriptors.get(role, 0) + descriptors
        self.threads[role] = self.threads.get(role, 0) + threads


@dataclass(slots=True)
class Soaked:
    """A run. `before` and `after` were taken without traffic, `samples` within `seconds` of it."""

    tally: Tally
    before: Sample
    seconds: float
    after: Sample = field(default_factory=lambda: Sample(0.0))
    samples: list[Sample] = field(default_factory=list)
    health_ms: list[float] = field(default_factory=list)
    exit_status: int = 0
    ended_s: float = 0.0
    left_running: int = 0
    defects: list[str] = field(default_factory=list)

    @property
    def roles(self) -> list[str]:
        return sorted(self.before.rss)

    def slope(self, role: str | None = None) -> tuple[float, float]:
        """Growth of resident memory in percent an hour, and its standard error; of all processes if no role is given.

        The line of least squares through the samples, over its value at the start.
        """
        values = [sum(each.rss.values()) if role is None else each.rss.get(role, 0.0) for each in self.samples]
        return slope([each.at_s / 3600 for each in self.samples], values)

    def leaked(self) -> dict[str, int]:
        """Descriptors more than before, by role."""
        return {role: self.after.descriptors.get(role, 0) - self.before.descriptors[role] for role in self.roles}

    def figures(self) -> dict[str, Any]:
        step = max(1, math.ceil(len(self.samples) / KEPT_SAMPLES))
        return {
            "seconds": self.seconds,
            "requests": self.tally.requests,
            "statuses": {kind: dict(sorted(seen.items())) for kind, seen in sorted(self.tally.statuses.items())},
            "wrong": dict(self.tally.wrong),
            "memory": {role or "all": self._memory(role) for role in (None, *self.roles)},
            "descriptors": {"before": self.before.descriptors, "after": self.after.descriptors},
            "threads": {"before": self.before.threads, "after": self.after.threads},
            "health_ms": {
                "p50": round(percentile(self.health_ms, 0.5), 2),
                "p99": round(percentile(self.health_ms, 0.99), 2),
                "most": round(max(self.health_ms, default=0.0), 2),
            },
            "exit_status": self.exit_status,
            "ended_s": round(self.ended_s, 2),
            "left_running": self.left_running,
            "defects": len(self.defects),
            "samples": [
                {"at_s": round(each.at_s), "rss_mib": {role: round(mib, 1) for role, mib in each.rss.items()}}
                for each in self.samples[::step]
            ],
        }

    def _memory(self, role: str | None) -> dict[str, float | None]:
        def mib(sample: Sample) -> float:
            return round(sum(sample.rss.values()) if role is None else sample.rss.get(role, 0.0), 1)

        growth, error = self.slope(role)
        return {
            "before_mib": mib(self.before),
            "after_mib": mib(self.after),
            "most_mib": max(map(mib, self.samples), default=0.0),
            "percent_per_hour": round(growth, 3) if math.isfinite(growth) else None,
            "standard_error": round(error, 3) if math.isfinite(error) else None,
        }


def slope(hours: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Slope of the line of least squares and its standard error, in percent of its start an hour; NaN of no line."""
    if len(hours) < 3 or len(set(hours)) < 2:
        return math.nan, math.nan
    rise, height = statistics.linear_regression(hours, values)
    rest = sum((value - height - rise * hour) ** 2 for hour, value in zip(hours, values, strict=True))
    spread = statistics.pvariance(hours) * len(hours)
    start = height + rise * hours[0]
    return 100 * rise / start, 100 * math.sqrt(rest / (len(hours) - 2) / spread) / start


@dataclass(frozen=True, slots=True)
class Target:
    """`met` is None if the run was too short to say."""

    name: str
    value: float
    bound: float
    met: bool | None


def targets(found: Soaked) -> list[Target]:
    """What a soak is held to."""
    growth, _ = found.slope()
    counted = {
        "false safe": found.tally.wrong["false safe"],
        "false unsafe": found.tally.wrong["false unsafe"],
        "other wrong answers": sum(found.tally.wrong.values())
        - found.tally.wrong["false safe"]
        - found.tally.wrong["false unsafe"],
        "answers with 5xx": found.tally.server_errors,
        "descriptors leaked": max(0, *found.leaked().values()),
        "lines of the log about a defect": len(found.defects),
        "exit status": abs(found.exit_status),
        "processes left running": found.left_running,
    }
    long_enough = found.seconds >= LEAST_S and math.isfinite(growth)
    return [
        Target("memory, percent an hour", round(growth, 3), MOST_SLOPE, growth <= MOST_SLOPE if long_enough else None),
        *(Target(name, value, 0, value == 0) for name, value in counted.items()),
    ]


# --- For a person ----------------------------------------------------------------------------------------


def report(found: Soaked) -> str:
    figures = found.figures()
    memory = table(
        ("process", "MiB before", "MiB after", "most", "% an hour", "descriptors", "threads"),
        (
            (
                role,
                *(number(of[key]) for key in ("before_mib", "after_mib", "most_mib")),
                f"{number(of['percent_per_hour'])} ± {number(of['standard_error'])}",
                *(_change(figures[what], role) for what in ("descriptors", "threads")),
            )
            for role, of in figures["memory"].items()
        ),
    )
    asked = table(
        ("asked", "answers by status"),
        (
            (kind, ", ".join(f"{status}: {count:,}" for status, count in seen.items()))
            for kind, seen in figures["statuses"].items()
        ),
    )
    health = figures["health_ms"]
    held = table(
        ("target", "seen", "at most", "met"),
        (
            (
                each.name,
                number(each.value),
                f"{each.bound:g}",
                {True: "yes", False: "NO", None: f"needs {LEAST_S / 60:.0f} minutes"}[each.met],
            )
            for each in targets(found)
        ),
    )
    lines = [
        f"\n{found.tally.requests:,} requests in {found.seconds / 60:.1f} minutes, the warm-up not counted",
        memory,
        asked,
        f"/health in ms: p50 {health['p50']}, p99 {health['p99']}, most {health['most']}",
        f"ended {found.ended_s:.1f} s after SIGTERM",
        held,
    ]
    return "\n\n".join([*lines, *(f"defect: {line}" for line in found.defects[:5])])


def _change(of: dict[str, dict[str, int]], role: str) -> str:
    before, after = (sum(each.values()) if role == "all" else each.get(role, 0) for each in of.values())
    return f"{before} to {after}"
