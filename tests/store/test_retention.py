"""What is stored has an end: by age, by key, by command, and the space comes back."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.aio import ended
from server.domain.errors import NotFound
from server.store.batches import Batch, Batches, LeaseLost, Status
from server.store.database import Database
from server.store.files import CHUNK_BYTES, Files, StoredFile
from server.store.retention import KINDS, Retention, Which
from server.store.tables import batch_results, batches, file_chunks, files
from tests.fakes import until
from tests.store.made import batch_of
from tests.store.test_batches import result

KEEP_S = 10_000
SECRET = b"zebra crossing " * 1000


class Store:
    """All that is kept, on a clock that stands still until it is moved."""

    def __init__(self, database: Database) -> None:
        self.time = 1_000_000.0
        self.database = database
        self.files = Files(database, now=self.now)
        self.batches = Batches(database, now=self.now)
        self.retention = Retention(database, KEEP_S, now=self.now)

    def now(self) -> float:
        return self.time

    async def add(self, owner: str = "anna", expires_after: int | None = 5000, content: bytes = b"x") -> StoredFile:
        return await self.files.add(owner, "batch", "rows.jsonl", once(content), expires_after)

    async def batch(self, owner: str = "anna") -> Batch:
        """One that a server works on."""
        file = await self.add(owner)
        made = await batch_of(self.batches, owner, file.id)
        await self.batches.claim("worker", made.id)
        return await self.batches.start(made.id, "worker", model="m", total=1)

    async def ended(self, owner: str = "anna") -> Batch:
        batch = await self.batch(owner)
        await self.batches.record(batch.id, "worker", [result(1)])
        return await self.batches.end(batch.id, "worker", Status.COMPLETED, keep_s=KEEP_S)

    async def counts(self) -> tuple[int, int]:
        """How many files and batches there are."""
        async with self.database.begin() as connection:
            found = [await connection.scalar(select(func.count()).select_from(table)) for table in (files, batches)]
        return found[0] or 0, found[1] or 0

    async def rows(self) -> int:
        """Everything that hangs on files and batches."""
        async with self.database.begin() as connection:
            tables = (file_chunks, batch_results)
            counts = [await connection.scalar(select(func.count()).select_from(table)) for table in tables]
        return sum(count or 0 for count in counts)


async def once(content: bytes) -> AsyncIterator[bytes]:
    yield content


@pytest.fixture
def store(database: Database) -> Store:
    return Store(database)


async def test_what_has_expired_goes_and_the_rest_stays(store: Store) -> None:
    done = await store.ended()
    assert await store.counts() == (2, 1)
    store.time += 5000
    assert await store.retention.erase() == {"batches": 0, "files": 1}
    assert (await store.batches.get("anna", done.id)).status is Status.COMPLETED
    store.time += KEEP_S - 5000
    assert await store.retention.erase() == {"batches": 1, "files": 1}
    assert (await store.counts(), await store.rows()) == ((0, 0), 0)


async def test_what_an_earlier_release_kept_for_ever_gets_the_whole_time_once(store: Store) -> None:
    file = await store.add(expires_after=None)
    longer = await store.add(expires_after=10 * KEEP_S)
    store.time += 100 * KEEP_S
    async with store.database.begin() as connection:
        await connection.execute(update(files).where(files.c.id == longer.id).values(expires_at=store.time + 10**6))
    assert await store.retention.erase() == {"batches": 0, "files": 0}
    for each in (file, longer):
        assert (await store.files.get("anna", each.id)).expires_at == store.time + KEEP_S
    store.time += KEEP_S / 2
    await store.retention.erase()
    store.time += KEEP_S / 2
    assert await store.retention.erase() == {"batches": 0, "files": 2}


async def test_a_batch_of_an_earlier_release_stays_as_long_as_its_results(store: Store) -> None:
    await store.ended()
    async with store.database.begin() as connection:
        await connection.execute(update(files).values(expires_at=None))
    store.time += 100 * KEEP_S
    assert await store.retention.erase() == {"batches": 0, "files": 0}
    store.time += KEEP_S
    assert await store.retention.erase() == {"batches": 1, "files": 2}


async def test_a_batch_at_work_outlives_its_files_time(store: Store) -> None:
    batch = await store.batch()
    store.time += 10 * KEEP_S
    assert await store.retention.erase() == {"batches": 0, "files": 0}
    assert await store.retention.erase(older_than_s=1) == {"batches": 0, "files": 0}
    assert (await store.batches.get("anna", batch.id)).status is Status.IN_PROGRESS
    assert [piece async for piece in store.files.content(batch.input_file_id)] == [b"x"]


async def test_all_of_a_key_goes_with_what_is_at_work_and_nothing_of_others(store: Store) -> None:
    running = await store.batch("anna")
    await store.batches.record(running.id, "worker", [result(1)])
    await store.ended("anna")
    kept = await store.ended("bert")
    assert await store.retention.erase(owner="anna") == {"batches": 2, "files": 3}
    assert (await store.counts(), await store.rows()) == ((2, 1), 2)
    assert (await store.batches.get("bert", kept.id)).status is Status.COMPLETED
    with pytest.raises(NotFound):
        await store.batches.get("anna", running.id)
    with pytest.raises(LeaseLost):  # the server that works on it hears of it, and stops
        await store.batches.renew(running.id, "worker")


async def test_what_is_older_goes_of_everybody_or_of_one(store: Store) -> None:
    for owner in ("anna", "bert"):
        await store.ended(owner)
    store.time += 1000
    await store.ended("anna")
    assert await store.retention.erase(owner="bert", older_than_s=1001) == {"batches": 0, "files": 0}
    assert await store.retention.erase(owner="bert", older_than_s=1000) == {"batches": 1, "files": 2}
    assert await store.retention.erase(older_than_s=500) == {"batches": 1, "files": 2}
    assert await store.counts() == (2, 1)


async def test_another_table_needs_one_entry(database: Database) -> None:
    asked: list[tuple[Which, int]] = []

    async def erase_records(connection: AsyncConnection, which: Which, keep_s: int) -> int:
        asked.append((which, keep_s))
        return max(0, 3 - len(asked))

    retention = Retention(database, KEEP_S, now=lambda: 5.0, kinds={**KINDS, "audit records": erase_records})
    assert await retention.erase(owner="anna") == {"batches": 0, "files": 0, "audit records": 3}
    assert asked == [(Which(5.0, "anna"), KEEP_S)] * 3


async def test_the_schedule_goes_on_whatever_fails(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.store.retention.EVERY_S", 0.01)
    calls = 0

    async def erase_some(connection: AsyncConnection, which: Which, keep_s: int) -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ZeroDivisionError
        return 0

    await store.add()
    store.time += 5000
    retention = Retention(store.database, KEEP_S, now=store.now, kinds={"some": erase_some, **KINDS})
    work = asyncio.create_task(retention.run())
    await until(lambda: calls >= 4)
    work.cancel()
    await asyncio.wait({work})
    assert await store.counts() == (0, 0)


# --- Space ------------------------------------------------------------------------------------------------


def content_of(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir())


async def test_sqlite_gives_the_space_back_and_keeps_no_traces(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/guard.db")
    await database.open()
    store = Store(database)
    await store.add(content=SECRET * 700)
    await database.tidy()
    assert (tmp_path / "guard.db").stat().st_size > 10 * CHUNK_BYTES
    assert b"zebra crossing" in content_of(tmp_path)
    store.time += 5000
    await store.retention.erase()
    await database.tidy()
    assert (tmp_path / "guard.db").stat().st_size < CHUNK_BYTES / 2
    assert b"zebra crossing" not in content_of(tmp_path)
    await database.close()


async def test_a_file_of_an_earlier_release_is_written_anew_by_command(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/guard.db")
    await database.open()
    store = Store(database)
    await store.add(content=SECRET * 700)
    await database.close()
    with sqlite3.connect(tmp_path / "guard.db") as old:
        old.execute("PRAGMA auto_vacuum=NONE")
        old.execute("PRAGMA journal_mode=DELETE")
        old.execute("VACUUM")
        assert old.execute("PRAGMA auto_vacuum").fetchone() == (0,)
    await database.open()
    store.time += 5000
    await store.retention.erase()
    await database.tidy()
    assert (tmp_path / "guard.db").stat().st_size > 10 * CHUNK_BYTES, "a server at work does not stop for this"
    await database.give_space_back()
    assert (tmp_path / "guard.db").stat().st_size < CHUNK_BYTES / 2
    async with database.begin() as connection:
        assert await connection.scalar(select(func.count()).select_from(files)) == 0
    await database.close()


async def test_the_schedule_ends_at_whatever_moment_it_is_cancelled(database: Database) -> None:
    """SQLAlchemy and its drivers lose some of these cancellations, and a server that is told to stop must not wait."""
    for moment in range(50):
        task = asyncio.create_task(Retention(database, KEEP_S).run())
        await asyncio.sleep(moment * 0.0004)
        async with asyncio.timeout(10):
            await ended(task)
