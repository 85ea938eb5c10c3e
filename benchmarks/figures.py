"""From latencies and counts to the figures of a table."""

import math
import statistics
from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """The least of `values` that `share` of them do not exceed; NaN of none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def goodput(latencies_ms: Sequence[float], failed: int, limit_ms: float) -> float:
    """The share of requests that got a verdict within `limit_ms`; NaN of none."""
    asked = len(latencies_ms) + failed
    return sum(latency <= limit_ms for latency in latencies_ms) / asked if asked else math.nan


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and greatest of the ratios of rounds that ran side by side."""
    each = [a / b for a, b in zip(ours, theirs, strict=True) if b]
    if not each:
        return (math.nan,) * 3
    return statistics.median(each), min(each), max(each)
