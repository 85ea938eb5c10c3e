"""Work that ends when its client hangs up."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

Result = TypeVar("Result")


async def until_disconnect(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Await `work`, but cancel it, and wait until it has ended, as soon as the client is gone.

    The request's body must have been read. Raises ClientDisconnect.
    """
    task = asyncio.current_task()
    assert task is not None
    hung_up = False

    def end(gone: asyncio.Task[None]) -> None:
        nonlocal hung_up
        if not gone.cancelled():
            gone.exception()  # a connection that fails is as good as gone
            hung_up = task.cancel()

    # A watch beside the work, in this task, is half the price of a task for each.
    watch = asyncio.get_running_loop().create_task(_disconnected(request))
    watch.add_done_callback(end)
    try:
        return await work
    except asyncio.CancelledError:
        if not hung_up or task.cancelling() > 1:
            raise
        raise ClientDisconnect from None
    finally:
        watch.remove_done_callback(end)
        watch.cancel()
        if hung_up:
            task.uncancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
