"""How many bytes of bodies are in memory, over all requests: they are read before a request is admitted or refused."""

from server.domain.errors import Overloaded


class BodyBudget:
    """Room for `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._free = limit

    def take(self, size: int) -> None:
        """Raises Overloaded."""
        if size > self._free:
            raise Overloaded(
                "Too many large requests are being read at the moment. Try again in a second.", retry_after=1
            )
        self._free -= size

    def give_back(self, size: int) -> None:
        self._free += size
