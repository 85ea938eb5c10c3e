"""From latencies and counts to the figures of a table."""

import math
import statistics
from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """The least of `values` that `share` of them do not exceed; NaN of none."""
    if not values:
        return math.nan
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def timely_share(latencies_ms: Sequence[float], failed: int, limit_ms: float) -> float:
    """The share of requests that got a verdict within `limit_ms`; NaN of none."""
    asked = len(latencies_ms) + failed
    return sum(latency <= limit_ms for latency in latencies_ms) / asked if asked else math.nan


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Median, least and greatest of the ratios of rounds that ran side by side; none where a round has no figure."""
    each = [a / b for a, b in zip(ours, theirs, strict=True) if b and math.isfinite(a) and math.isfinite(b)]
    return [statistics.median(each), min(each), max(each)] if each else []
