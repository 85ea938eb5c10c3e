"""Shares of what all callers use together, so that what one holds never shuts out another."""

from collections import Counter

from server.domain.errors import Overloaded


class FairShare:
    """`limit` units for all holders. A holder may have as many as are still free after that.

    So one holder gets half of them, each of two a third, and there is always something left for the next one. A holder
    that may be several callers is divided once more: each of its parts may have as many as the holder could still take
    after that.
    """

    def __init__(self, limit: int) -> None:
        self.free = limit
        self._held: Counter[tuple[str, ...]] = Counter()

    def take(self, holder: str, amount: int, part: str | None = None) -> bool:
        """Whether `holder`, and its `part` if it is divided, now has `amount` more. Nothing changes otherwise."""
        room = self.free - amount
        for place in _places(holder, part):
            held = self._held[place] + amount
            if held > room:
                return False
            room -= held
        self._add(holder, part, amount)
        return True

    def give_back(self, holder: str, amount: int, part: str | None = None) -> None:
        self._add(holder, part, -amount)

    def _add(self, holder: str, part: str | None, amount: int) -> None:
        self.free -= amount
        for place in _places(holder, part):
            self._held[place] += amount
            if not self._held[place]:
                del self._held[place]


def _places(holder: str, part: str | None) -> list[tuple[str, ...]]:
    return [(holder,)] if part is None else [(holder,), (holder, part)]


class BodyBudget:
    """Limits the bytes of all request bodies in memory, since bodies are read before requests are admitted."""

    SMALL = 64 * 1024
    """So many bytes of each body are free: whoever sends large bodies does not shut out small ones."""

    def __init__(self, limit: int) -> None:
        self._share = FairShare(limit)

    @property
    def free(self) -> int:
        return self._share.free

    def take(self, holder: str, held: int, size: int, part: str | None = None) -> int:
        """Count `size` more bytes of a body that has `held`. Returns how many to give back. Raises Overloaded.

        `part` is the connection of a `holder` without a key: an address may be that of many callers.
        """
        counted = max(0, held + size - self.SMALL) - max(0, held - self.SMALL)
        if counted and not self._share.take(holder, counted, part):
            raise Overloaded(
                "The server is reading too many large requests at the moment. Try again in a second.", retry_after=1
            )
        return counted

    def give_back(self, holder: str, counted: int, part: str | None = None) -> None:
        if counted:
            self._share.give_back(holder, counted, part)
