"""A limit on the bytes of all request bodies in memory, since bodies are read before requests are admitted."""

from server.domain.errors import Overloaded


class BodyBudget:
    """Room for `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._free = limit

    def take(self, size: int) -> None:
        """Raises Overloaded."""
        if size > self._free:
            raise Overloaded(
                "The server is reading too many large requests at the moment. Try again in a second.", retry_after=1
            )
        self._free -= size

    def give_back(self, size: int) -> None:
        self._free += size
