"""Tasks and errors that leave nothing behind.

An error holds the frames that it passed through, and so the content of a request. If one of those frames also holds the
error, or a task or future that ended with it, the two keep each other in memory, with the content, until garbage is
collected. The server does that rarely (commands/serve.py). So a frame drops its tasks and futures (`del`) before an
error leaves it, and raises a `fresh` error in place of one that it still holds. tests/api/http/test_garbage.py shows
whether this works.
"""

import asyncio
import copy
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

Result = TypeVar("Result")
E = TypeVar("E", bound=Exception)


def fresh(error: E) -> E:
    """A copy of the error that has not passed through any frame."""
    return copy.copy(error)


AGAIN_S = 1.5
"""Time after which a task that was cancelled and still runs is cancelled again."""


async def ended(*tasks: asyncio.Future[Any]) -> None:
    """Cancel `tasks` and wait until they have ended, with or without an error.

    Libraries lose a cancellation now and then: with SQLAlchemy and aiosqlite a task may then wait for a connection that
    is closed. So what still runs is cancelled again, or a server that stops would wait for ever.
    """
    waiting = set(tasks)
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=AGAIN_S)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # which nobody else asks for


async def together(works: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Do all `works` at the same time and return their results in order. The first error ends all of them."""
    # Not a TaskGroup: its errors hold themselves.
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        await ended(*tasks)
        tasks.clear()
        raise
