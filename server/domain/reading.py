"""Large requests are read beside the event loop, in turns, so that none keeps those of other callers waiting."""

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from server.domain.errors import DeadlineExceeded
from server.domain.turns import Turns

Result = TypeVar("Result")

LARGE = 65_536
"""What has more bytes or characters is read beside the event loop."""

QUICK = 2**20
"""What has no more is read by a thread that nothing larger occupies."""

SECONDS_PER_BYTE = 1e-7
"""About what it takes to read ordinary text. Large requests let smaller ones go first for so long."""

_READERS = Turns(1, "reader")
"""Few threads: each that computes makes the event loop wait for the interpreter's lock for some milliseconds."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Whose request is read, how many bytes it has, and until when it must be read, a time of time.monotonic()."""

    holder: str = ""
    size: int = 0
    deadline: float = math.inf

    @property
    def large(self) -> bool:
        return self.size > LARGE

    async def done(self, work: Callable[[], Result]) -> Result:
        """The result of `work`, which only computes. It is done at once unless the request is large."""
        return await self.beside(work, self.size) if self.large else work()

    async def beside(self, work: Callable[[], Result], size: int) -> Result:
        """The result of `work` on `size` bytes or characters, done beside the event loop.

        It still holds the interpreter's lock now and then, so none of its calls into C may take long. Raises
        DeadlineExceeded if it is not done in time. Work that has begun is finished then, and comes to nothing.
        """
        left = None if math.isinf(self.deadline) else max(0.0, self.deadline - time.monotonic())
        try:
            async with asyncio.timeout(left):
                # No name for the job: it would be held by the frames of the error that it ends with.
                return await asyncio.wrap_future(
                    _READERS.submit(work, quick=size <= QUICK, patience=size * SECONDS_PER_BYTE, holder=self.holder)
                )
        except TimeoutError:
            raise DeadlineExceeded(
                "The request could not be read by its deadline. Try again later, or send less text."
            ) from None
