"""Batches belong to one server at a time, results count once, and the end is one transaction."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import func, select, update

from server.domain.errors import Conflict, InvalidRequest, NotFound, StoreUnavailable, TooManyBatches
from server.store import batches as store_module
from server.store.batches import LEASE_S, WINDOW_S, Batch, Batches, LeaseLost, LineResult, Status
from server.store.database import Database
from server.store.files import Files
from server.store.tables import batch_results, batches
from tests.store.conftest import make_read_only
from tests.store.test_files import add, content


class Store:
    """Batches and files on a clock that stands still until it is moved."""

    def __init__(self, database: Database) -> None:
        self.time = 1_000_000.0
        self.database = database
        self.files = Files(database, now=lambda: self.time)
        self.batches = Batches(database, now=lambda: self.time)

    async def make(self, owner: str = "anna", **changes: Any) -> Batch:
        file = await add(self.files, b"{}\n", owner=owner)
        options = {
            "never_remote": False,
            "finished_prompts": False,
            "endpoint": "/v1/moderations",
            "completion_window": "24h",
            "input_file_id": file.id,
            "output_expires_after": None,
            "metadata": None,
        }
        return await self.batches.create(owner, **{**options, **changes})

    async def started(self, total: int = 3) -> Batch:
        await self.make()
        batch = await self.claim("one")
        assert batch is not None
        return await self.batches.start(batch.id, "one", model="guard", total=total)

    async def claim(self, worker: str, besides: Sequence[str] = (), urgent_only: bool = False) -> Batch | None:
        """The oldest of all that wait."""
        waiting = await self.batches.waiting(besides=besides, urgent_only=urgent_only)
        return await self.batches.claim(worker, waiting[0].id) if waiting else None

    async def results(self) -> int:
        async with self.database.begin() as connection:
            return (await connection.execute(select(func.count()).select_from(batch_results))).scalar_one()


@pytest.fixture
def store(database: Database) -> Store:
    return Store(database)


def result(line: int, failed: bool = False) -> LineResult:
    return LineResult(line, failed, json.dumps({"line": line}), input_tokens=10, cached_tokens=4, output_tokens=1)


# --- What callers ask --------------------------------------------------------------------------------------


async def test_what_was_asked_for_comes_back(store: Store) -> None:
    made = await store.make(
        never_remote=True, finished_prompts=True, output_expires_after=7200, metadata={"für": "\0 alles"}
    )
    assert await store.batches.get("anna", made.id) == made
    assert (made.status, made.metadata) == (Status.VALIDATING, {"für": "\0 alles"})
    assert (made.never_remote, made.finished_prompts) == (True, True)
    assert made.expires_at - made.created_at == WINDOW_S == 86_400


async def test_others_do_not_see_it(store: Store) -> None:
    made = await store.make()
    for asking in (store.batches.get("bert", made.id), store.batches.cancel("bert", made.id)):
        with pytest.raises(NotFound):
            await asking
    assert await store.batches.page("bert", after=None, limit=10) == ([], False)
    assert (await store.batches.get("anna", made.id)).status is Status.VALIDATING


@pytest.mark.parametrize("batch_id", ["", "batch_", "batch_" + "0" * 32, "batch_\0" + "0" * 31, "file-" + "0" * 32])
async def test_what_is_not_there_is_not_found(store: Store, batch_id: str) -> None:
    for asking in (store.batches.get("anna", batch_id), store.batches.cancel("anna", batch_id)):
        with pytest.raises(NotFound):
            await asking


async def test_a_batch_needs_a_file_of_its_owner_that_was_meant_for_it(store: Store) -> None:
    other = await add(store.files, b"", owner="bert")
    output = await add(store.files, b"", purpose="batch_output")
    for file_id in (other.id, "file-" + "0" * 32, "nonsense\0"):
        with pytest.raises(NotFound) as refused:
            await store.make(input_file_id=file_id)
        assert refused.value.param == "input_file_id"
    with pytest.raises(InvalidRequest, match="purpose"):
        await store.make(input_file_id=output.id)
    assert await store.batches.page("anna", after=None, limit=10) == ([], False)


async def test_pages_follow_each_other(store: Store) -> None:
    made = [(await store.make()).id for _ in range(5)][::-1]
    first, more = await store.batches.page("anna", after=None, limit=3)
    rest, no_more = await store.batches.page("anna", after=first[-1].id, limit=3)
    assert ([batch.id for batch in first + rest], more, no_more) == (made, True, False)


async def test_what_has_ended_cannot_be_cancelled(store: Store) -> None:
    batch = await store.started()
    cancelling = await store.batches.cancel("anna", batch.id)
    assert cancelling.status is Status.CANCELLING
    assert await store.batches.cancel("anna", batch.id) == cancelling
    await store.batches.end(batch.id, "one", Status.CANCELLED)
    with pytest.raises(Conflict, match="cancelled"):
        await store.batches.cancel("anna", batch.id)


async def test_what_is_being_written_cannot_be_cancelled(store: Store) -> None:
    batch = await store.started()
    await store.batches.finalize(batch.id, "one")
    with pytest.raises(Conflict, match="finalizing"):
        await store.batches.cancel("anna", batch.id)


# --- Leases ------------------------------------------------------------------------------------------------


async def test_batches_are_taken_in_the_order_of_their_making_and_each_once(store: Store) -> None:
    made = [(await store.make()).id for _ in range(3)]
    taken = [await store.claim(worker) for worker in ("one", "two", "one", "two")]
    assert [batch and batch.id for batch in taken] == [*made, None]


async def test_many_servers_that_reach_for_one_batch(store: Store) -> None:
    for _ in range(5):
        made = await store.make()
        taken = await asyncio.gather(*(store.claim(f"worker {number}") for number in range(8)))
        assert [batch.id for batch in taken if batch] == [made.id]


async def test_a_server_that_is_silent_for_too_long_has_lost_its_batch(store: Store) -> None:
    batch = await store.started()
    store.time += LEASE_S - 1
    assert await store.claim("two") is None
    await store.batches.renew(batch.id, "one")
    store.time += LEASE_S
    assert await store.claim("two") is None
    store.time += 1
    taken = await store.claim("two")
    assert taken is not None
    assert taken.status is Status.IN_PROGRESS
    for writing in (
        store.batches.renew(batch.id, "one"),
        store.batches.record(batch.id, "one", [result(1)]),
        store.batches.start(batch.id, "one", model="m", total=1),
        store.batches.fail(batch.id, "one", []),
        store.batches.finalize(batch.id, "one"),
        store.batches.end(batch.id, "one", Status.COMPLETED),
    ):
        with pytest.raises(LeaseLost):
            await writing
    await store.batches.release(batch.id, "one")
    assert await store.claim("three") is None
    assert (await store.batches.get("anna", batch.id)) == replace(batch, falls=1)
    assert await store.results() == 0


async def test_a_server_never_takes_its_own_batch_twice(store: Store) -> None:
    """Not even when it was asleep for so long that it seems dead."""
    batch = await store.started()
    store.time += LEASE_S * 2
    assert await store.claim("one", besides=[batch.id]) is None


async def test_what_is_left_is_free_at_once(store: Store) -> None:
    batch = await store.started()
    await store.batches.release(batch.id, "one")
    assert await store.claim("two") is not None
    await store.batches.release_all()
    assert await store.claim("three") is not None


async def test_what_only_has_to_end_goes_before_the_rest(store: Store) -> None:
    await store.make()
    cancelled = await store.make()
    assert await store.claim("one", urgent_only=True) is None
    await store.batches.cancel("anna", cancelled.id)
    taken = await store.claim("one", urgent_only=True)
    assert taken is not None
    assert taken.id == cancelled.id
    store.time += WINDOW_S
    assert await store.claim("two", urgent_only=True) is not None


async def test_a_batch_that_has_ended_is_nobodys(store: Store) -> None:
    batch = await store.started()
    await store.batches.end(batch.id, "one", Status.COMPLETED)
    failed = await store.make()
    await store.claim("one")
    await store.batches.fail(failed.id, "one", [{"code": "empty_file"}])
    store.time += LEASE_S * 2
    assert await store.claim("two") is None
    assert (await store.batches.get("anna", failed.id)).errors == [{"code": "empty_file"}]


# --- Servers that fall -------------------------------------------------------------------------------------


async def test_a_lease_that_ran_out_is_a_fall_and_one_that_was_given_back_is_none(store: Store) -> None:
    batch = await store.started()
    assert batch.falls == 0
    await store.batches.release(batch.id, "one")
    again = await store.claim("two")
    assert again is not None
    assert again.falls == 0
    store.time += LEASE_S + 1
    fallen = await store.claim("three")
    assert fallen is not None
    assert fallen.falls == 1
    # A server that was only slow, and is still there, did not fall.
    store.time += LEASE_S + 1
    late = await store.claim("three")
    assert late is not None
    assert late.falls == 1


async def test_who_starts_alone_and_who_lost_its_engine_report_a_fall(store: Store) -> None:
    batch = await store.started()
    await store.batches.release_all()
    taken = await store.claim("two")
    assert taken is not None
    assert taken.falls == 1
    await store.batches.release(batch.id, "two", fell=True)
    again = await store.claim("three")
    assert again is not None
    assert again.falls == 2


async def test_a_line_is_suspect_until_its_result_is_there(store: Store) -> None:
    batch = await store.started()
    assert await store.batches.suspects(batch.id) == {}
    await store.batches.suspect(batch.id, "one", 2)
    await store.batches.suspect(batch.id, "one", 2)
    await store.batches.suspect(batch.id, "one", 3)
    assert await store.batches.suspects(batch.id) == {2: 2, 3: 1}
    await store.batches.record(batch.id, "one", [result(1), result(2)])
    assert await store.batches.suspects(batch.id) == {3: 1}
    with pytest.raises(LeaseLost):
        await store.batches.suspect(batch.id, "two", 1)
    await store.batches.end(batch.id, "one", Status.EXPIRED)
    assert await store.batches.suspects(batch.id) == {}


async def test_each_owners_oldest_batch_is_told(store: Store) -> None:
    made = [await store.make(owner) for owner in ("bert", "anna", "bert", "carl")]
    waiting = await store.batches.waiting(besides=[made[3].id])
    assert [(each.id, each.owner) for each in waiting] == [(made[0].id, "bert"), (made[1].id, "anna")]
    waiting = await store.batches.waiting(besides=[made[0].id])
    assert [each.id for each in waiting] == [made[1].id, made[2].id, made[3].id]


# --- What is damaged ---------------------------------------------------------------------------------------


async def test_a_row_that_cannot_be_read_fails_and_keeps_nobody_up(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    damaged, other = await store.make(), await store.make()
    monkeypatch.setattr("server.store.batches._batch", refuse(damaged.id))
    assert await store.batches.claim("one", damaged.id) is None
    taken = await store.claim("one")
    assert taken is not None
    assert taken.id == other.id
    monkeypatch.undo()
    failed = await store.batches.get("anna", damaged.id)
    assert (failed.status, failed.failed_at) == (Status.FAILED, store.time)
    assert failed.errors is not None
    assert [fault["code"] for fault in failed.errors] == ["unreadable_batch"]
    assert "cannot be read (ZeroDivisionError)" in caplog.text


def refuse(batch_id: str) -> Callable[[Any], Batch]:
    """A reader of rows that fails at one of them."""
    read = store_module._batch

    def reading(row: Any) -> Batch:
        if row.id == batch_id:
            raise ZeroDivisionError
        return read(row)

    return reading


async def test_damaged_documents_do_not_hide_their_batch(store: Store) -> None:
    made = await store.make(metadata={"a": "b"})
    async with store.database.begin() as connection:
        await connection.execute(update(batches).values(metadata='{"a":', errors="\x01"))
    (listed,), _ = await store.batches.page("anna", after=None, limit=10)
    assert (listed.id, listed.metadata, listed.errors) == (made.id, None, None)


# --- Limits ------------------------------------------------------------------------------------------------


async def test_an_owner_has_only_so_many_open_batches(store: Store) -> None:
    first = await store.make(most_open=2)
    await store.make(most_open=2)
    with pytest.raises(TooManyBatches, match="GUARD_MAX_OPEN_BATCHES"):
        await store.make(most_open=2)
    await store.make("bert", most_open=2)
    await store.batches.claim("one", first.id)
    await store.batches.end(first.id, "one", Status.CANCELLED)
    await store.make(most_open=2)


async def test_results_are_kept_no_longer_than_the_operator_says(store: Store) -> None:
    expiries = []
    for wish in (None, 3600, 9000):
        batch = await store.make(output_expires_after=wish)
        await store.claim("one")
        await store.batches.start(batch.id, "one", model="m", total=1)
        await store.batches.record(batch.id, "one", [result(1)])
        ended = await store.batches.end(batch.id, "one", Status.COMPLETED, keep_s=7200)
        assert ended.output_file_id is not None
        expiries.append((await store.files.get("anna", ended.output_file_id)).expires_at)
    assert expiries == [store.time + 7200, store.time + 3600, store.time + 7200]


# --- Results -----------------------------------------------------------------------------------------------


async def test_results_count_once_however_often_they_are_recorded(store: Store) -> None:
    batch = await store.started()
    await store.batches.record(batch.id, "one", [result(1), result(2, failed=True)])
    await store.batches.record(batch.id, "one", [result(2, failed=True), result(3), result(1)])
    await store.batches.record(batch.id, "one", [result(1)])
    counted = await store.batches.get("anna", batch.id)
    assert (counted.total, counted.completed, counted.failed) == (3, 2, 1)
    assert (counted.input_tokens, counted.cached_tokens, counted.output_tokens) == (30, 12, 3)
    assert await store.batches.recorded(batch.id) == {1, 2, 3}


async def test_the_end_makes_the_files_in_the_order_of_the_lines(store: Store) -> None:
    batch = await store.started(200)
    lines = [result(line, failed=line % 3 == 0) for line in range(200, 0, -1)]
    for start in range(0, 200, 50):
        await store.batches.record(batch.id, "one", lines[start : start + 50])
    await store.batches.finalize(batch.id, "one")
    ended = await store.batches.end(batch.id, "one", Status.COMPLETED)
    assert ended == await store.batches.get("anna", batch.id)
    assert (ended.status, ended.completed_at, ended.finalizing_at) == (Status.COMPLETED, store.time, store.time)
    for file_id, expected in (
        (ended.output_file_id, [line for line in range(1, 201) if line % 3]),
        (ended.error_file_id, [line for line in range(1, 201) if line % 3 == 0]),
    ):
        assert file_id is not None
        file = await store.files.get("anna", file_id)
        text = await content(store.files, file)
        assert [json.loads(line)["line"] for line in text.splitlines()] == expected
        assert (file.purpose, file.bytes, text[-1:]) == ("batch_output", len(text), b"\n")
    assert await store.results() == 0


async def test_no_file_is_made_of_nothing(store: Store) -> None:
    batch = await store.started()
    await store.batches.record(batch.id, "one", [result(1)])
    ended = await store.batches.end(batch.id, "one", Status.CANCELLED)
    assert ended.output_file_id is not None
    assert ended.error_file_id is None


async def test_output_expires_as_it_was_asked_for(store: Store) -> None:
    batch = await store.make(output_expires_after=3600)
    await store.claim("one")
    await store.batches.start(batch.id, "one", model="m", total=1)
    await store.batches.record(batch.id, "one", [result(1)])
    store.time += 100
    ended = await store.batches.end(batch.id, "one", Status.COMPLETED)
    assert ended.output_file_id is not None
    assert (await store.files.get("anna", ended.output_file_id)).expires_at == store.time + 3600


async def test_a_cancellation_is_not_written_over(store: Store) -> None:
    batch = await store.make()
    await store.claim("one")
    await store.batches.cancel("anna", batch.id)
    for writing in (
        store.batches.start(batch.id, "one", model="m", total=1),
        store.batches.fail(batch.id, "one", []),
        store.batches.finalize(batch.id, "one"),
    ):
        assert (await writing).status is Status.CANCELLING


async def test_a_database_that_fails_at_the_end_leaves_everything_as_it_was(store: Store) -> None:
    batch = await store.started()
    await store.batches.record(batch.id, "one", [result(1), result(2)])
    before = await store.batches.get("anna", batch.id)
    await make_read_only(store.database)
    for writing in (
        store.batches.record(batch.id, "one", [result(3)]),
        store.batches.end(batch.id, "one", Status.COMPLETED),
        store.batches.cancel("anna", batch.id),
    ):
        with pytest.raises(StoreUnavailable):
            await writing
    assert await store.batches.get("anna", batch.id) == before
    assert await store.batches.recorded(batch.id) == {1, 2}


async def test_every_timestamp_has_its_status(store: Store) -> None:
    """`end` and the moves write `<status>_at`: each such column must be there."""
    async with store.database.begin() as connection:
        for status in set(Status) - {Status.VALIDATING}:
            await connection.execute(update(batches).values({f"{status}_at": 1}))
