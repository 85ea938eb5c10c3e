"""The bounded queue: how many verdicts may be in work at once, and when the server refuses more."""

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from server.domain.errors import Overloaded, ShuttingDown


class Admission:
    """Counts verdicts that are in work or wait for the engine, and refuses a request that would pass `limit`.

    A request is admitted before its images are decoded, since decoding is work too.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._seconds_each = 0.1
        self.admitted = 0
        self.draining = False
        self._freed = asyncio.Event()

    @contextmanager
    def admit(self, verdicts: int) -> Iterator[None]:
        """Hold `verdicts` places. Raises Overloaded (with the seconds to wait) or ShuttingDown."""
        if self.draining:
            raise ShuttingDown("The server is shutting down. Try again in a second.", retry_after=1)
        if self.admitted + verdicts > self.limit:
            raise Overloaded("The server is at its limit of concurrent verdicts.", retry_after=self._retry_after())
        self.admitted += verdicts
        try:
            yield
        finally:
            self.admitted -= verdicts
            self._freed.set()

    @asynccontextmanager
    async def admit_behind(self, verdicts: int) -> AsyncIterator[None]:
        """Hold places for background work. Waits until at least half of all places stay free for live requests.

        Raises ShuttingDown.
        """
        while not self.draining and self.admitted and self.admitted + verdicts > self.limit // 2:
            self._freed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):  # draining wakes nobody
                    await self._freed.wait()
        with self.admit(verdicts):
            yield

    @property
    def free(self) -> int:
        return max(0, self.limit - self.admitted)

    @property
    def reset_s(self) -> float:
        """Seconds until all places are likely to be free: about the time of one verdict, since they run in parallel."""
        return self._seconds_each if self.admitted else 0.0

    def observe(self, seconds: float) -> None:
        """Learn from the latency of a verdict how long a place is held."""
        self._seconds_each += 0.1 * (seconds - self._seconds_each)

    def _retry_after(self) -> int:
        # While all places are taken, one is freed each time a verdict finishes.
        return max(1, min(30, math.ceil(self._seconds_each)))
