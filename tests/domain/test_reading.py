"""Large requests are read beside the event loop, and no caller's keep another's waiting."""

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from server.domain import reading
from server.domain.errors import DeadlineExceeded
from server.domain.reading import LARGE, QUICK, Reading
from server.domain.turns import Turns


@pytest.fixture(autouse=True)
def readers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Turns]:
    turns = Turns(1, "test")
    monkeypatch.setattr(reading, "_READERS", turns)
    yield turns
    turns.close(wait=True)


async def test_what_is_small_is_done_at_once_and_what_is_large_beside_the_event_loop() -> None:
    here = threading.get_ident()
    assert await Reading(size=LARGE).done(threading.get_ident) == here
    assert await Reading(size=LARGE + 1).done(threading.get_ident) != here


async def test_the_works_of_one_caller_keep_no_other_waiting() -> None:
    held, order = threading.Event(), list[str]()
    held_first = asyncio.create_task(Reading("flood").beside(held.wait, QUICK + 1))
    await asyncio.sleep(0.05)
    flood = [asyncio.create_task(Reading("flood").beside(lambda: order.append("flood"), 60 * QUICK)) for _ in range(5)]
    await asyncio.sleep(0)
    large = asyncio.create_task(Reading("other").beside(lambda: order.append("other"), 60 * QUICK))
    async with asyncio.timeout(5):
        await Reading("other").beside(lambda: order.append("other, quick"), QUICK)
    assert order == ["other, quick"], "it waits for nothing larger"
    held.set()
    await asyncio.gather(held_first, large, *flood)
    assert order == ["other, quick", "other", *["flood"] * 5]


async def test_the_deadline_ends_the_wait_and_what_has_not_begun_never_begins() -> None:
    held, begun = threading.Event(), list[int]()
    deadline = time.monotonic() + 0.1
    works = [
        asyncio.create_task(Reading(deadline=deadline).beside(work, QUICK + 1))
        for work in (held.wait, lambda: begun.append(1))
    ]
    for outcome in await asyncio.gather(*works, return_exceptions=True):
        assert isinstance(outcome, DeadlineExceeded)
    held.set()
    await Reading().beside(lambda: None, QUICK + 1)
    assert begun == []
