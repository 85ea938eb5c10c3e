"""The connection to SQLite or PostgreSQL. The schema is brought up to date when it opens."""

import asyncio
import contextlib
import fcntl
import functools
import logging
import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DataError, IntegrityError, OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from server.domain.errors import StoreUnavailable
from server.scratch import Scratch
from server.settings import Settings
from server.store import private
from server.store.tables import metadata

log = logging.getLogger(__name__)

DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_S = 30

INCREMENTAL = 2
"""SQLite's number for an auto_vacuum that waits until it is asked."""

PAGES_A_STEP = 1000
"""Of 4 KiB each. Writers wait for a step, not for all of them."""


class DatabaseError(Exception):
    """The database cannot be used. The message is for the operator and holds no password."""


class Unstorable(StoreUnavailable):
    """The database works, but cannot hold a value: it is too long, or has a character that the database cannot store.

    Another try would fail too.
    """

    retryable = False


class _SchemaError(Exception):
    """The tables are of an unknown version."""


class _SqliteConnection(sqlite3.Connection):
    """Rolls back when it is closed.

    A cancellation closes a connection in the middle of its work. SQLite would keep such a connection and its lock until
    the last unfinished statement is collected as garbage.
    """

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self.rollback()
        super().close()


class Database:
    """`await open()` once, then `begin()` a transaction whenever needed; `close()` at the end."""

    def __init__(self, url: str) -> None:
        """`url` as operators write it: `sqlite:///path`, `postgresql://user:password@host/name`, or `sqlite://` for a
        database that is deleted when it closes.

        Raises DatabaseError for anything else.
        """
        self._url = _with_driver(url)
        self.is_temporary = self._url.get_backend_name() == "sqlite" and self._url.database in (None, "", ":memory:")
        self._scratch: Scratch | None = None
        self._engine: AsyncEngine | None = None
        self._presence: int | None = None
        self.opened_alone = False
        """Whether no other process had this database open. False for PostgreSQL, where that is never known."""

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._url.get_backend_name()

    async def open(self) -> None:
        """Connect and bring the schema up to date. Raises DatabaseError."""
        if self._engine is not None:
            return
        url = self._url
        if self.is_temporary:
            # Still a file: a database in memory is lost when a cancellation closes its connection.
            self._scratch = Scratch()
            url = url.set(database=f"{self._scratch.folder}/guard.db")
        options: dict[str, Any] = {}
        if self.dialect == "sqlite":
            _make_private(Path(str(url.database)))
            self._presence, self.opened_alone = await asyncio.to_thread(_be_present, f"{url.database}.lock")
            options["connect_args"] = {"timeout": BUSY_TIMEOUT_S, "factory": _SqliteConnection}
        try:
            self._engine = create_async_engine(url, pool_pre_ping=self.dialect != "sqlite", **options)
            if self.dialect == "sqlite":
                durability = "OFF" if self.is_temporary else "FULL"
                event.listen(self._engine.sync_engine, "connect", functools.partial(prepare_sqlite, durability))
            async with self._engine.begin() as connection:
                # A new database needs no migration, and Alembic is slow.
                await connection.run_sync(metadata.create_all if self.is_temporary else _upgrade)
        except (SQLAlchemyError, OSError, ImportError, _SchemaError) as error:
            await self.close()
            raise DatabaseError(
                f"The database {self._url.render_as_string()} cannot be used: {_reason(error)}. Check"
                " GUARD_DATABASE_URL, and that the database is running."
            ) from error

    @contextlib.asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """A transaction. It is committed at the end of the block, or rolled back if the block raises.

        Raises StoreUnavailable if the database fails. Blocks do not nest.
        """
        if self._engine is None:
            raise RuntimeError("the database is not open")
        try:
            async with self._engine.begin() as connection:
                yield connection
        except (DataError, OverflowError) as error:
            log.error("the database refused a value: %s", type(getattr(error, "orig", None) or error).__name__)
            raise Unstorable("The server's database cannot hold this, and nothing was changed.") from None
        except SQLAlchemyError as error:
            if self.dialect == "sqlite" and not isinstance(error, OperationalError | IntegrityError):
                # A file that was damaged may have been restored: the connections still hold what they read of it.
                await self._engine.dispose()
            # Nothing about the statement is logged, since it may repeat content.
            detail = f": {_reason(error)}" if isinstance(error, OperationalError) else ""
            log.error("the database failed with %s%s", type(getattr(error, "orig", None) or error).__name__, detail)
            raise StoreUnavailable("The server's database failed, and nothing was changed. Try again later.") from None

    async def give_space_back(self) -> None:
        """Give the space of what was erased back to the disk. Raises StoreUnavailable.

        PostgreSQL does so by itself. An SQLite file that an earlier release made is written anew, once, which takes as
        much space again for a while.
        """
        if self.dialect != "sqlite" or self._engine is None:
            return
        async with self._plain() as connection:
            if (await connection.exec_driver_sql("PRAGMA auto_vacuum")).scalar() != INCREMENTAL:
                await connection.exec_driver_sql("VACUUM")
            await _vacuum(connection)

    async def tidy(self) -> None:
        """The same in small steps, for a database that a server works with. Raises StoreUnavailable.

        A file that an earlier release made keeps its size.
        """
        if self.dialect == "sqlite" and self._engine is not None:
            async with self._plain() as connection:
                await _vacuum(connection)

    @contextlib.asynccontextmanager
    async def _plain(self) -> AsyncIterator[AsyncConnection]:
        """A connection without a transaction around its statements. Raises StoreUnavailable."""
        assert self._engine is not None
        try:
            async with self._engine.connect() as connection:
                yield await connection.execution_options(isolation_level="AUTOCOMMIT")
        except SQLAlchemyError as error:
            log.error("the database did not give space back: %s", type(getattr(error, "orig", None) or error).__name__)
            raise StoreUnavailable("The server's database failed. Try again later.") from None

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.dispose()
            self._engine = None
        if self._presence is not None:
            os.close(self._presence)
            self._presence = None
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None


def database_of(settings: Settings) -> Database:
    """The database of this deployment, closed. Raises DatabaseError for a URL of another kind."""
    private.narrow(settings.data_folder)
    return Database(settings.database)


def _with_driver(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise DatabaseError("GUARD_DATABASE_URL is not a URL. Use sqlite:///path or postgresql://...") from None
    driver = DRIVERS.get(parsed.drivername)
    if driver is None:
        raise DatabaseError("GUARD_DATABASE_URL must begin with sqlite:// or postgresql://.")
    return parsed.set(drivername=driver)


def _make_private(file: Path) -> None:
    """Make the database's file before SQLite does, and narrow what is there. SQLite gives its other files its mode."""
    try:
        private.make_folder(file.parent)
    except OSError as error:
        raise DatabaseError(
            f"The folder {file.parent} cannot be created: {error.strerror}. Check GUARD_DATA_DIR."
        ) from error
    try:
        if not file.is_dir():
            private.make_file(file)
    except OSError as error:
        raise DatabaseError(
            f"The file {file} cannot be created: {error.strerror}. Check GUARD_DATABASE_URL."
        ) from error
    for ending in ("-wal", "-shm", "-journal"):
        private.narrow(file.with_name(file.name + ending))


def _be_present(path: str) -> tuple[int, bool]:
    """Show other processes that the database is open, while the descriptor is open: the kernel closes it with us.

    Also returns whether no other process had it open. Raises DatabaseError.
    """
    try:
        private.make_file(Path(path))
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except BlockingIOError:
            alone = False
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except OSError as error:
        raise DatabaseError(f"The file {path} cannot be created: {error.strerror}.") from error
    return descriptor, alone


def prepare_sqlite(durability: str, connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    # With INCREMENTAL, a new database can give the space of what was erased back to the disk. With secure_delete, what
    # was erased is overwritten. With WAL, readers and the writer do not wait for each other. With FULL, commits survive
    # a power failure.
    pragmas = (
        "auto_vacuum=INCREMENTAL",
        "secure_delete=ON",
        "journal_mode=WAL",
        f"synchronous={durability}",
        "foreign_keys=ON",
    )
    for pragma in pragmas:
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


async def _vacuum(connection: AsyncConnection) -> None:
    """Move free pages to the end of the file and cut them off, and empty the log, which may hold erased content."""
    while (await connection.exec_driver_sql("PRAGMA freelist_count")).scalar_one():
        before = (await connection.exec_driver_sql("PRAGMA page_count")).scalar_one()
        # It gives back one page for each row that is read, and its rows have no columns: only a script reads them all.
        raw = await connection.get_raw_connection()
        assert raw.driver_connection is not None
        await raw.driver_connection.executescript(f"PRAGMA incremental_vacuum({PAGES_A_STEP})")
        if (await connection.exec_driver_sql("PRAGMA page_count")).scalar_one() >= before:
            break
    await connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError:
        raise _SchemaError("its tables are from a later version of this server") from None


def _reason(error: BaseException) -> str:
    """The driver's message without the statement and its parameters."""
    original = getattr(error, "orig", None) or error
    return str(original).splitlines()[0] if str(original) else type(original).__name__
