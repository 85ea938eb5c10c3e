"""Tasks and errors that leave nothing behind.

An error holds the frames that it passed through, and so the content of a request. If one of those frames also holds the
error, or a task or future that ended with it, the two keep each other in memory, with the content, until garbage is
collected. The server does that rarely (commands/serve.py). So a frame drops its tasks and futures (`del`) before an
error leaves it, and raises a `fresh` error in place of one that it still holds. tests/api/http/test_garbage.py shows
whether this works.
"""

import asyncio
import copy
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")
E = TypeVar("E", bound=Exception)

_READERS = ThreadPoolExecutor(2, thread_name_prefix="reader")
"""Few threads: each that computes makes the event loop wait for the interpreter's lock for some milliseconds."""


def fresh(error: E) -> E:
    """A copy of the error that has not passed through any frame."""
    return copy.copy(error)


async def ended(*tasks: asyncio.Future[Any]) -> None:
    """Cancel `tasks` and wait until they have ended, with or without an error."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


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


async def done(work: Callable[[], Result], *, large: bool) -> Result:
    """The result of `work`, which only computes. `large` work is done beside the event loop.

    It still holds the interpreter's lock now and then, so none of its calls into C may take long.
    """
    if not large:
        return work()
    return await asyncio.get_running_loop().run_in_executor(_READERS, work)
