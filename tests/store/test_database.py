"""The database opens, or says why not; what fails later is one clear error, and nothing is half done."""

import asyncio
import logging
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, insert, select, text
from sqlalchemy.engine import make_url

from server.domain.errors import StoreUnavailable
from server.store.database import Database, DatabaseError
from server.store.keys import list_all
from server.store.tables import files, metadata
from tests.conftest import PostgreSQL
from tests.store.conftest import make_read_only

ROW = {"owner": "", "purpose": "batch", "filename": "a", "bytes": 0, "created_at": 0}


async def test_the_migrations_make_what_the_tables_say(database: Database) -> None:
    assert database._engine is not None
    async with database._engine.connect() as connection:
        differences = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync, opts={"compare_type": True}), metadata)
        )
    assert differences == []


async def test_a_database_of_the_first_release_is_brought_up_to_date(database_url: str) -> None:
    """Keys and batches that were there keep everything, and get no new right."""
    database = Database(database_url)
    await database.open()
    assert database._engine is not None
    async with database._engine.begin() as connection:
        for table in ("api_keys", "batches"):
            await connection.execute(text(f"ALTER TABLE {table} DROP COLUMN finished_prompts"))
        await connection.execute(text("ALTER TABLE batches DROP COLUMN falls"))
        await connection.execute(text("DROP TABLE batch_suspects"))
        await connection.execute(text("DROP TABLE audit_lines"))
        await connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
        await connection.execute(
            text(
                "INSERT INTO api_keys (id, prefix, digest, name, scopes, never_remote, created_at)"
                " VALUES ('key_1', 'p', :digest, 'old', 'moderate', true, 1)"
            ),
            {"digest": b"d" * 32},
        )
    await database.close()
    upgraded = Database(database_url)
    await upgraded.open()
    (key,) = await list_all(upgraded)
    assert (key.name, key.caller.never_remote, key.caller.finished_prompts) == ("old", True, False)
    await upgraded.close()


async def test_what_was_committed_is_there_for_the_next_one_who_opens(database_url: str) -> None:
    first = Database(database_url)
    await first.open()
    await first.open()
    async with first.begin() as connection:
        await connection.execute(insert(files).values(id="file-1", **ROW))
    await first.close()
    await first.close()
    second = Database(database_url)
    await second.open()
    assert await count(second) == 1
    await second.close()


async def test_an_exception_takes_all_of_its_block_back(database: Database) -> None:
    async def fail() -> None:
        async with database.begin() as connection:
            await connection.execute(insert(files).values(id="file-1", **ROW))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await count(database) == 0


async def test_several_may_open_an_empty_database_at_once(database_url: str) -> None:
    """Each in a process of its own, as servers are."""
    openers = 3
    code = (
        "import asyncio, sys; from server.store.database import Database;"
        " sys.stdin.read(1); asyncio.run(Database(sys.argv[1]).open())"
    )
    processes = [
        subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-c", code, database_url], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(openers)
    ]
    results = await asyncio.gather(*(asyncio.to_thread(process.communicate, "x") for process in processes))
    assert [(process.returncode, errors) for process, (_, errors) in zip(processes, results, strict=True)] == [
        (0, "")
    ] * openers
    last = Database(database_url)
    await last.open()
    assert await count(last) == 0
    await last.close()


async def test_transactions_do_not_mix(database: Database) -> None:
    """One that is rolled back must not take another one with it."""
    inside = asyncio.Event()

    async def fails() -> None:
        async with database.begin() as connection:
            await connection.execute(insert(files).values(id="file-lost", **ROW))
            inside.set()
            await asyncio.sleep(0)
            raise ZeroDivisionError

    async def succeeds() -> None:
        await inside.wait()
        async with database.begin() as connection:
            await connection.execute(insert(files).values(id="file-kept", **ROW))

    await asyncio.gather(fails(), succeeds(), return_exceptions=True)
    async with database.begin() as connection:
        assert (await connection.execute(select(files.c.id))).scalars().all() == ["file-kept"]


async def test_a_cancelled_transaction_takes_nothing_with_it(database: Database) -> None:
    """And holds nobody up, although its connection was cut."""
    async with database.begin() as connection:
        await connection.execute(insert(files).values(id="file-kept", **ROW))
    for steps in range(12):

        async def transact(number: int = steps) -> None:
            async with database.begin() as connection:
                await connection.execute(insert(files).values(id=f"file-{number}", **ROW))
                await asyncio.Event().wait()

        task = asyncio.create_task(transact())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert await count(database) == 1


async def test_a_statement_that_is_given_up_while_it_waits_for_a_lock_takes_none(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/guard.db")
    await database.open()
    other = sqlite3.connect(tmp_path / "guard.db")
    other.execute("BEGIN IMMEDIATE")
    begun = asyncio.Event()

    async def transact() -> None:
        async with database.begin() as connection:
            begun.set()
            await connection.execute(insert(files).values(id="file-lost", **ROW))

    task = asyncio.create_task(transact())
    await begun.wait()
    task.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    other.rollback()
    await asyncio.wait({task}, timeout=10)
    assert task.cancelled()
    other.close()
    assert await count(database) == 0
    async with database.begin() as connection:
        await connection.execute(insert(files).values(id="file-kept", **ROW))
    assert await count(database) == 1
    await database.close()


async def test_a_temporary_database_is_gone_when_it_closes() -> None:
    database = Database("sqlite://")
    await database.open()
    async with database.begin() as connection:
        await connection.execute(insert(files).values(id="file-kept", **ROW))
    await database.close()
    await database.open()
    assert await count(database) == 0
    await database.close()


async def test_a_cancelled_transaction_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that hangs up in the middle of a statement does not keep all others from writing."""
    monkeypatch.setattr("server.store.database.BUSY_TIMEOUT_S", 1)
    database = Database(f"sqlite:///{tmp_path}/guard.db")
    await database.open()
    running, cancelled = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def pause() -> None:
        loop.call_soon_threadsafe(running.set)
        cancelled.wait(10)

    async def transact() -> None:
        async with database.begin() as connection:
            await connection.execute(insert(files).values(id="file-lost", **ROW))
            raw = await connection.get_raw_connection()
            assert raw.driver_connection is not None
            await raw.driver_connection.create_function("pause", 0, pause)
            await connection.execute(text("SELECT pause() UNION ALL SELECT 2"))

    task = asyncio.create_task(transact())
    await running.wait()
    task.cancel()
    await asyncio.sleep(0)  # so that the cancellation comes before the statement's end
    cancelled.set()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    async with database.begin() as connection:
        await connection.execute(insert(files).values(id="file-kept", **ROW))
    assert await count(database) == 1
    await database.close()


# --- Who is there ----------------------------------------------------------------------------------------


async def test_who_opens_sqlite_knows_whether_anybody_else_has_it_open(tmp_path: Path) -> None:
    first, second, third = (Database(f"sqlite:///{tmp_path}/guard.db") for _ in range(3))
    await first.open()
    await second.open()
    assert (first.opened_alone, second.opened_alone) == (True, False)
    await first.close()
    await second.close()
    await third.open()
    assert third.opened_alone
    await third.close()


async def test_a_process_that_was_killed_is_not_there(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/guard.db"
    code = (
        "import asyncio, sys; from server.store.database import Database;"
        " database = Database(sys.argv[1]); asyncio.run(database.open()); print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, url]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: ASYNC220
    assert process.stdout is not None
    await asyncio.to_thread(process.stdout.readline)
    beside, after = Database(url), Database(url)
    await beside.open()
    await beside.close()
    process.kill()
    process.wait()
    await after.open()
    await after.close()
    assert (beside.opened_alone, after.opened_alone) == (False, True)


# --- What cannot be opened --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["", "guard.db", "mysql://root:hunter2@host/x", "sqlite+pysqlite:///x", "://", "postgresql+asyncpg://h/x"]
)
def test_a_url_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(DatabaseError, match="GUARD_DATABASE_URL") as refused:
        Database(url)
    assert "hunter2" not in str(refused.value)


async def test_a_path_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "other.db").write_text("no database at all, but long enough to be taken for one" * 20)
    (tmp_path / "folder.db").mkdir()
    for path in ("file/guard.db", "other.db", "folder.db"):
        with pytest.raises(DatabaseError, match=str(tmp_path)):
            await Database(f"sqlite:///{tmp_path}/{path}").open()


async def test_a_database_that_cannot_be_reached_is_refused_without_its_password() -> None:
    with pytest.raises(DatabaseError) as refused:
        await Database("postgresql://guard:hunter2@127.0.0.1:9/guard?connect_timeout=2").open()
    assert "127.0.0.1" in str(refused.value)
    assert "hunter2" not in str(refused.value)


async def test_a_wrong_password_is_refused_without_telling_it(postgresql: PostgreSQL) -> None:
    rules = postgresql.folder / "pg_hba.conf"
    before = rules.read_text()
    postgresql.execute("CREATE ROLE guarded LOGIN PASSWORD 'swordfish'")
    rules.write_text("local all guarded scram-sha-256\n" + before)
    postgresql.execute("SELECT pg_reload_conf()")
    try:
        url = postgresql.new_database().replace("postgres:@", "guarded:hunter2@")
        with pytest.raises(DatabaseError, match="password authentication failed") as refused:
            await Database(url).open()
        assert "hunter2" not in str(refused.value)
    finally:
        rules.write_text(before)
        postgresql.execute("SELECT pg_reload_conf()")
        postgresql.execute("DROP ROLE guarded")


async def test_a_schema_of_a_later_version_is_refused(database_url: str) -> None:
    """A server that was rolled back must not write into tables that it does not know."""
    database = Database(database_url)
    await database.open()
    async with database.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await database.close()
    with pytest.raises(DatabaseError, match="later version"):
        await Database(database_url).open()


# --- What fails later -------------------------------------------------------------------------------------


async def test_a_read_only_database_is_one_clear_error(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    await make_read_only(database)
    with pytest.raises(StoreUnavailable) as failed:
        async with database.begin() as connection:
            await connection.execute(insert(files).values(id="file-1", **{**ROW, "filename": "zebra"}))
    assert (failed.value.status, failed.value.retryable) == (503, True)
    assert "zebra" not in caplog.text + failed.value.message
    assert await count(database) == 0


async def test_a_full_disk_is_one_clear_error_and_nothing_half_written(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/guard.db")
    await database.open()

    async def fill() -> None:
        async with database.begin() as connection:
            await connection.execute(text("PRAGMA max_page_count=60"))
            for number in range(1000):
                await connection.execute(insert(files).values(id=f"file-{number}", **{**ROW, "filename": "x" * 500}))

    with pytest.raises(StoreUnavailable):
        await fill()
    assert await count(database) == 0
    await database.close()


async def test_a_locked_database_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("server.store.database.BUSY_TIMEOUT_S", 0.05)
    database = Database(f"sqlite:///{tmp_path}/guard.db")
    await database.open()
    other = sqlite3.connect(tmp_path / "guard.db")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable):
        async with database.begin() as connection:
            await connection.execute(insert(files).values(id="file-1", **ROW))
    assert "locked" in caplog.text
    assert await count(database) == 0
    other.rollback()
    async with database.begin() as connection:
        await connection.execute(insert(files).values(id="file-1", **ROW))
    assert await count(database) == 1
    other.close()
    await database.close()


async def test_a_database_that_went_away_is_one_clear_error(postgresql: PostgreSQL) -> None:
    url = postgresql.new_database()
    database = Database(url)
    await database.open()
    name = make_url(url).database
    postgresql.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
    postgresql.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
    with pytest.raises(StoreUnavailable):
        await count(database)
    await database.close()


async def test_what_was_to_be_stored_is_not_logged(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for _ in range(2):
        try:
            async with database.begin() as connection:
                await connection.execute(insert(files).values(id="file-zebra", **{**ROW, "filename": "zebra"}))
        except StoreUnavailable as error:
            assert "zebra" not in error.message  # noqa: PT017
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("server")]
    assert ours
    assert not [line for line in ours if "zebra" in line]


async def count(database: Database) -> int:
    async with database.begin() as connection:
        return (await connection.execute(select(func.count()).select_from(files))).scalar_one()
