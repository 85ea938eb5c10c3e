"""The places for lines in work over all batches. Owners take turns, however many batches each of them has."""

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass

BYTES_A_PLACE = 4 * 2**20


@dataclass(frozen=True, slots=True)
class _Wait:
    places: int
    granted: asyncio.Future[None]


class Places:
    """Limits the lines in work. A long line takes several places, which bounds memory too."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._free = count
        self._waits: OrderedDict[str, deque[_Wait]] = OrderedDict()
        """By owner. The first owner is the next one to get a place."""

    async def take(self, owner: str, size: int) -> int:
        """Wait for the places that a line of `size` bytes takes, and return their number."""
        wait = _Wait(min(self._count, 1 + size // BYTES_A_PLACE), asyncio.get_running_loop().create_future())
        self._waits.setdefault(owner, deque()).append(wait)
        self._grant()
        try:
            await wait.granted
        except asyncio.CancelledError:
            if wait.granted.done() and not wait.granted.cancelled():
                self.give_back(wait.places)
            else:
                self._leave(owner, wait)
            raise
        return wait.places

    def give_back(self, places: int) -> None:
        self._free += places
        self._grant()

    def _grant(self) -> None:
        """Give free places to the owners in turn. A long line that is next keeps others waiting, or it would starve."""
        while self._waits:
            owner, waits = next(iter(self._waits.items()))
            if waits[0].places > self._free:
                return
            wait = waits.popleft()
            self._free -= wait.places
            if waits:
                self._waits.move_to_end(owner)
            else:
                del self._waits[owner]
            wait.granted.set_result(None)

    def _leave(self, owner: str, wait: _Wait) -> None:
        waits = self._waits[owner]
        waits.remove(wait)
        if not waits:
            del self._waits[owner]
        self._grant()  # it may have been the one that kept others waiting
