"""Whoever is told to end does end."""

import asyncio
import contextlib

import pytest

from server.domain import aio
from server.domain.aio import ended


async def losing_it(times: int) -> None:
    """Work in a library whose cleaning up fails when it is cancelled."""
    for _ in range(times):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(10)
    await asyncio.sleep(10)


async def test_a_cancellation_that_was_lost_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aio, "AGAIN_S", 0.02)
    tasks = [asyncio.create_task(losing_it(times)) for times in (0, 1, 3)]
    await asyncio.sleep(0)
    async with asyncio.timeout(2):
        await ended(*tasks)
    assert all(task.cancelled() for task in tasks)
