"""Tasks and errors that leave nothing behind.

An error holds the frames that it passed through, and so all that they know of a request. Where one of those frames
holds the error in turn, or a task or future that ended with it, the two keep each other in memory, and what the caller
sent with them, until garbage is collected: the server does that rarely (commands/serve.py). So a frame that an error
leaves drops its tasks and futures before (`del`), and raises a `fresh` one instead of an error that it still knows.
tests/api/http/test_garbage.py shows whether it worked.
"""

import asyncio
import copy
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

Result = TypeVar("Result")
E = TypeVar("E", bound=Exception)


def fresh(error: E) -> E:
    """The same error, which has passed through no frames yet."""
    return copy.copy(error)


async def ended(*tasks: asyncio.Future[Any]) -> None:
    """Cancel `tasks` and wait until they have ended, however that may be."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def together(works: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """The results of works that are done at the same time, in order. The first error ends all of them."""
    # Not a TaskGroup, whose errors hold themselves.
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        await ended(*tasks)
        tasks.clear()
        raise
