"""The bounded queue: how much may be worked on at once, and when the server stops taking more."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import Overloaded, ShuttingDown


class Admission:
    """Counts verdicts that are worked on or wait for the engine, and refuses what would pass `limit`.

    A request is admitted before its images are decoded, since decoding is work too.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seconds_each = 0.1
        self.admitted = 0
        self.draining = False

    @contextmanager
    def admit(self, verdicts: int) -> Iterator[None]:
        """Hold `verdicts` places. Raises Overloaded (with the seconds to wait) or ShuttingDown."""
        if self.draining:
            raise ShuttingDown("The server is shutting down.", retry_after=1)
        if self.admitted + verdicts > self._limit:
            raise Overloaded("The server is at its limit of concurrent verdicts.", retry_after=self._retry_after())
        self.admitted += verdicts
        try:
            yield
        finally:
            self.admitted -= verdicts

    def observe(self, seconds: float) -> None:
        """Learn from a finished verdict's latency how long a place is held."""
        self._seconds_each += 0.1 * (seconds - self._seconds_each)

    def _retry_after(self) -> int:
        # With every place taken, places come free at the pace at which verdicts finish.
        return max(1, min(30, math.ceil(self._seconds_each)))
