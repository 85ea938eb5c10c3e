"""How long the event loop of this thread is kept from its other work, while something is done."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from threading import get_native_id

_SCHEDULED = Path("/proc/self/task")


@dataclass
class Lag:
    """`worst` is the longest time between two turns of the loop in seconds, without the time that other processes took.

    It holds what the callbacks of one turn computed, and what they waited for the interpreter's lock.
    """

    worst: float = 0.0


@contextlib.asynccontextmanager
async def watching() -> AsyncIterator[Lag]:
    """Watch the loop until the end of the block. The watch itself never sleeps, so every turn of the loop is seen."""
    lag = Lag()
    await asyncio.sleep(0)
    watch = asyncio.create_task(_watch(lag))
    try:
        yield lag
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


async def _watch(lag: Lag) -> None:
    then, waited = time.perf_counter(), _waited_for_a_core()
    while True:
        await asyncio.sleep(0)
        now = time.perf_counter()
        if now - then > 0.002:
            total = _waited_for_a_core()
            # The kernel counts in steps of its own, so the difference may be a little too large.
            lag.worst = max(lag.worst, now - then - (total - waited))
            waited = total
            now = time.perf_counter()
        then = now


def _waited_for_a_core() -> float:
    """Seconds that this thread was ready to run, while the kernel ran others on all cores."""
    _, waited, _ = (_SCHEDULED / str(get_native_id()) / "schedstat").read_text().split()
    return int(waited) / 1e9
