"""Coroutines that end together."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

Result = TypeVar("Result")


async def together(works: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """The results of works that are done at the same time, in order. The first error ends all of them."""
    # Not a TaskGroup, whose errors hold themselves and with them all that the caller sent.
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        tasks.clear()  # Errors hold this frame, and it holds the tasks that ended with them.
        raise
