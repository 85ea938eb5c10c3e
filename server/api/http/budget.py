"""Shares of what all callers use together, so that what one holds never shuts out another."""

from collections import Counter

from server.domain.errors import Overloaded


class FairShare:
    """`limit` units for all holders. A holder may have as many as are still free after that.

    So one holder gets half of them, each of two a third, and there is always something left for the next one.
    """

    def __init__(self, limit: int) -> None:
        self.free = limit
        self._held: Counter[str] = Counter()

    def take(self, holder: str, amount: int) -> bool:
        """Whether `holder` now has `amount` more. Nothing changes otherwise."""
        if self._held[holder] + amount > self.free - amount:
            return False
        self.free -= amount
        self._held[holder] += amount
        return True

    def give_back(self, holder: str, amount: int) -> None:
        self.free += amount
        self._held[holder] -= amount
        if not self._held[holder]:
            del self._held[holder]


class BodyBudget:
    """Limits the bytes of all request bodies in memory, since bodies are read before requests are admitted."""

    SMALL = 64 * 1024
    """So many bytes of each body are free: whoever sends large bodies does not shut out small ones."""

    def __init__(self, limit: int) -> None:
        self._share = FairShare(limit)

    @property
    def free(self) -> int:
        return self._share.free

    def take(self, holder: str, held: int, size: int) -> int:
        """Count `size` more bytes of a body that has `held`. Returns how many to give back. Raises Overloaded."""
        counted = max(0, held + size - self.SMALL) - max(0, held - self.SMALL)
        if counted and not self._share.take(holder, counted):
            raise Overloaded(
                "The server is reading too many large requests at the moment. Try again in a second.", retry_after=1
            )
        return counted

    def give_back(self, holder: str, counted: int) -> None:
        if counted:
            self._share.give_back(holder, counted)
