"""Retries of failed calls: a budget over all requests, growing random pauses, and the remote's Retry-After."""

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

RESERVE = 2.0
RATE = 0.1
"""The retries at the start, which are also the most that are ever saved up, and the part of one that a request adds.

So `n` requests make at most `RESERVE + (1 + RATE) * n` calls: 1.2 per request from the twentieth on.
"""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.25, 4.0


class RetryBudget:
    """Shared by all requests: if everything fails, retries must not multiply the load."""

    def __init__(self) -> None:
        self._saved = RESERVE

    def deposit(self) -> None:
        """A request begins."""
        self._saved = min(RESERVE, self._saved + RATE)

    def withdraw(self) -> bool:
        """Take one retry. Returns whether there was one."""
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True


def pause(attempt: int) -> float:
    """Seconds before retry number `attempt`, from 1: a random time up to a limit that doubles."""
    return random.uniform(0.0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(attempt, 9)))  # noqa: S311 - jitter, no secret


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds in Retry-After, in either of its forms. None if it is missing or cannot be read."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:10])
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
