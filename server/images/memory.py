"""The memory that pictures are decoded in."""

import contextlib
import threading
import time
from collections.abc import Iterator

from server.images.drawing import too_slow


class WorkingMemory:
    """Bytes that decoding threads share. They are served in the order in which they ask."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = size
        self._freed = threading.Condition()
        self._turn = threading.Lock()

    @contextlib.contextmanager
    def reserved(self, size: int, deadline: float) -> Iterator[None]:
        """Hold `size` bytes. Raises DeadlineExceeded when they do not come free before `deadline` (monotonic)."""
        # Whoever waits keeps the turn, so that small images cannot overtake a large one for ever.
        with self._turn, self._freed:
            if not self._freed.wait_for(lambda: self._free >= size, max(0.0, deadline - time.monotonic())):
                raise too_slow()
            self._free -= size
        try:
            yield
        finally:
            with self._freed:
                self._free += size
                self._freed.notify_all()
