"""Work that ends when its client hangs up."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from server.api.http.state import state_of

Result = TypeVar("Result")


async def until_disconnect(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Await `work`. If the client hangs up first, cancel `work`, wait until it has ended, and raise ClientDisconnect.

    Other ASGI servers do not report lost connections. Behind one of them, work goes on.
    """
    lost = state_of(request).connection_lost
    if lost is None:
        return await work
    task = asyncio.current_task()
    assert task is not None
    hung_up = False

    def end(_: asyncio.Future[None]) -> None:
        nonlocal hung_up
        hung_up = task.cancel()

    lost.add_done_callback(end)
    try:
        return await work
    except asyncio.CancelledError:
        if not hung_up or task.cancelling() > 1:
            raise
        raise ClientDisconnect from None
    finally:
        lost.remove_done_callback(end)
        if hung_up:
            task.uncancel()
