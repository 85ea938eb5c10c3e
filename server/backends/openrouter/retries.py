"""When a failed call is tried again: a budget over all requests, growing random pauses, and what the remote says."""

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

RESERVE = 2.0
RATE = 0.1
"""Retries that are there from the start, the most that are ever saved up, and what each request adds.

So `n` requests make at most `RESERVE + (1 + RATE) * n` calls: 1.2 a request from the twentieth on.
"""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 4.0


class RetryBudget:
    """Shared by all requests: when everything fails, retries must not multiply the load."""

    def __init__(self) -> None:
        self._saved = RESERVE

    def deposit(self) -> None:
        """A request begins."""
        self._saved = min(RESERVE, self._saved + RATE)

    def withdraw(self) -> bool:
        """Whether one more call may be made."""
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True


def pause(attempt: int) -> float:
    """Seconds before try number `attempt` (the first retry is 1): any time up to a bound that doubles."""
    return random.uniform(0.0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(attempt, 9)))  # noqa: S311 - jitter, no secret


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that Retry-After asks for, in either of its forms; None where it says nothing that can be read."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:10])
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
