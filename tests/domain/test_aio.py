"""Whoever is told to end does end."""

import asyncio
import contextlib

import pytest

from server.domain import aio
from server.domain.aio import ended, obey_cancellation


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


async def test_whoever_goes_on_after_an_error_obeys_a_cancellation_that_it_hides() -> None:
    async def work() -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(10)
            obey_cancellation()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task}, timeout=1)
    assert task.cancelled()


async def test_who_was_not_cancelled_or_whose_time_was_up_goes_on() -> None:
    obey_cancellation()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.sleep(1)
    obey_cancellation()
