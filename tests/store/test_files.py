"""Files are kept wholly or not at all, for their owner alone, and never in memory as a whole."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import func, select

from server.domain.errors import Conflict, NotFound, StoreUnavailable, TooManyBytes
from server.store.batches import Batches, Status
from server.store.database import Database
from server.store.files import CHUNK_BYTES, Files, StoredFile
from server.store.retention import Retention
from server.store.tables import file_chunks, files
from tests.store.conftest import make_read_only
from tests.store.made import batch_of

NOWHERE = [
    "file-" + "0" * 32,
    "file-",
    "file-\0" + "0" * 31,
    "batch_" + "0" * 32,
    "",
    "' OR 1=1 --",
    "file-" + "G" * 32,
]


async def pieces(*contents: bytes) -> AsyncIterator[bytes]:
    for content in contents:
        yield content


async def add(store: Files, *contents: bytes, owner: str = "anna", purpose: str = "batch") -> StoredFile:
    return await store.add(owner, purpose, "rows.jsonl", pieces(*contents), None)


async def content(store: Files, file: StoredFile) -> bytes:
    return b"".join([piece async for piece in store.content(file.id)])


async def expire(store: Files) -> int:
    """Erase what has expired. The number of files."""
    return (await Retention(store._database, 10**9, now=store._now).erase())["files"]


async def chunks(database: Database) -> int:
    async with database.begin() as connection:
        return (await connection.execute(select(func.count()).select_from(file_chunks))).scalar_one()


@pytest.mark.parametrize(
    "sizes",
    [(), (0,), (1,), (CHUNK_BYTES,), (CHUNK_BYTES - 1, 2), (10, CHUNK_BYTES * 3, 10), (CHUNK_BYTES + 1,)],
    ids=str,
)
async def test_every_byte_comes_back(database: Database, sizes: tuple[int, ...]) -> None:
    store = Files(database)
    contents = [bytes(range(256)) * (size // 256) + b"\n" * (size % 256) for size in sizes]
    file = await add(store, *contents)
    assert (file.bytes, await content(store, file)) == (sum(sizes), b"".join(contents))
    assert await store.get("anna", file.id) == file


async def test_a_file_is_never_in_memory_as_a_whole(database: Database) -> None:
    store = Files(database)
    one = b"x" * CHUNK_BYTES
    tracemalloc.start()
    file = await add(store, *(one for _ in range(24)))
    async for _ in store.content(file.id):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * CHUNK_BYTES


async def test_what_breaks_off_leaves_nothing(database: Database) -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield b"x" * CHUNK_BYTES * 2
        raise ConnectionResetError

    store = Files(database)
    with pytest.raises(ConnectionResetError):
        await store.add("anna", "batch", "rows.jsonl", breaking(), None)
    assert await store.page("anna", purpose=None, after=None, limit=10, newest_first=True) == ([], False)
    assert await chunks(database) == 0


async def test_a_database_that_fails_leaves_nothing_and_says_so(database: Database) -> None:
    store = Files(database)
    kept = await add(store, b"kept")
    await make_read_only(database)
    with pytest.raises(StoreUnavailable):
        await add(store, b"lost")
    with pytest.raises(StoreUnavailable):
        await store.delete("anna", kept.id)
    assert await content(store, kept) == b"kept"


async def test_another_owners_file_is_not_there(database: Database) -> None:
    store = Files(database)
    file = await add(store, b"x")
    for other in ("", "ann", "bert"):
        with pytest.raises(NotFound):
            await store.get(other, file.id)
        with pytest.raises(NotFound):
            await store.delete(other, file.id)
        assert await store.page(other, purpose=None, after=None, limit=10, newest_first=True) == ([], False)
    assert await content(store, file) == b"x"


@pytest.mark.parametrize("file_id", NOWHERE, ids=repr)
async def test_what_is_not_there_is_not_found(database: Database, file_id: str) -> None:
    store = Files(database)
    with pytest.raises(NotFound):
        await store.get("anna", file_id)
    with pytest.raises(NotFound):
        await store.delete("anna", file_id)


async def test_pages_follow_each_other_in_both_directions(database: Database) -> None:
    store = Files(database)
    made = [(await add(store, b"", purpose="batch" if index % 2 else "batch_output")).id for index in range(7)]
    for newest_first in (True, False):
        seen: list[str] = []
        more = True
        while more:
            page, more = await store.page(
                "anna", purpose=None, after=seen[-1] if seen else None, limit=3, newest_first=newest_first
            )
            seen += [file.id for file in page]
        assert seen == (made[::-1] if newest_first else made)
    page, more = await store.page("anna", purpose="batch", after=None, limit=3, newest_first=False)
    assert ([file.id for file in page], more) == (made[1::2], False)


async def test_deleting_takes_the_content_along(database: Database) -> None:
    store = Files(database)
    file = await add(store, b"x" * CHUNK_BYTES * 2)
    await store.delete("anna", file.id)
    assert await chunks(database) == 0
    with pytest.raises(NotFound):
        await store.get("anna", file.id)
    with pytest.raises(NotFound):
        await content(store, file)


async def test_reading_a_file_that_is_deleted_meanwhile_fails_and_does_not_end_early(database: Database) -> None:
    store = Files(database)
    file = await add(store, b"x" * CHUNK_BYTES * 3)
    reading = aiter(store.content(file.id))
    await anext(reading)
    await store.delete("anna", file.id)
    with pytest.raises(NotFound):
        async for _ in reading:
            pass


async def test_an_expired_file_is_gone(database: Database) -> None:
    time = [1000.0]
    store = Files(database, now=lambda: time[0])
    file = await store.add("anna", "batch", "rows.jsonl", pieces(b"x"), 3600)
    stays = await add(store, b"x")
    time[0] += 3599
    assert await store.get("anna", file.id) == file
    assert await expire(store) == 0
    time[0] += 1
    with pytest.raises(NotFound):
        await store.get("anna", file.id)
    page, _ = await store.page("anna", purpose=None, after=None, limit=10, newest_first=True)
    assert [listed.id for listed in page] == [stays.id]
    assert await expire(store) == 1
    assert await chunks(database) == 1


async def test_an_owner_has_room_for_only_so_much(database: Database) -> None:
    store, most = Files(database), 20_000
    for content_ in (b"x" * 8000, b"", b""):
        await store.add("anna", "batch", "rows.jsonl", pieces(content_), None, most_bytes=most)
    for too_long in ((b"x" * 4000,), (b"x" * 2000, b"x" * 2000)):
        with pytest.raises(TooManyBytes, match="GUARD_MAX_STORED_BYTES"):
            await store.add("anna", "batch", "rows.jsonl", pieces(*too_long), None, most_bytes=most)
    listed, _ = await store.page("anna", purpose=None, after=None, limit=10, newest_first=True)
    assert [file.bytes for file in listed] == [0, 0, 8000]
    with pytest.raises(TooManyBytes):  # an empty file takes room too
        await store.add("anna", "batch", "rows.jsonl", pieces(), None, most_bytes=most)
    await store.add("bert", "batch", "rows.jsonl", pieces(b"x" * most), None, most_bytes=most)
    await store.delete("anna", listed[0].id)
    await store.add("anna", "batch", "rows.jsonl", pieces(b"x" * 4000), None, most_bytes=most)


async def test_a_file_that_a_batch_reads_stays(database: Database) -> None:
    time = [1000.0]
    store, batches = Files(database, now=lambda: time[0]), Batches(database, now=lambda: time[0])
    file = await store.add("anna", "batch", "rows.jsonl", pieces(b"x"), 3600)
    batch = await batch_of(batches, "anna", file.id)
    with pytest.raises(Conflict):
        await store.delete("anna", file.id)
    time[0] += 4000
    assert await expire(store) == 0
    assert await content(store, file) == b"x"
    await batches.claim("worker", batch.id)
    await batches.end(batch.id, "worker", Status.COMPLETED)
    assert await expire(store) == 1


async def test_a_file_is_deleted_or_its_batch_is_made_but_never_both(database: Database) -> None:
    """The two at the same time, many times over."""
    store, batches = Files(database), Batches(database)
    for _ in range(15):
        file = await add(store, b"x")
        made, deleted = await asyncio.gather(
            batches.create(
                "anna",
                never_remote=False,
                finished_prompts=False,
                endpoint="/v1/moderations",
                completion_window="24h",
                input_file_id=file.id,
                output_expires_after=None,
                metadata=None,
            ),
            store.delete("anna", file.id),
            return_exceptions=True,
        )
        assert isinstance(made, NotFound) != isinstance(deleted, Conflict), (made, deleted)
    async with database.begin() as connection:
        kept = (await connection.execute(select(func.count()).select_from(files))).scalar_one()
    listed, _ = await batches.page("anna", after=None, limit=100)
    assert len(listed) == kept
