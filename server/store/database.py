"""The connection to SQLite or PostgreSQL. The schema is brought up to date when it opens."""

import asyncio
import contextlib
import fcntl
import functools
import logging
import os
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from server.domain.errors import StoreUnavailable
from server.store.tables import metadata

log = logging.getLogger(__name__)

DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_S = 30


class DatabaseError(Exception):
    """The database cannot be used. The message is for the operator and holds no password."""


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
        self._folder: tempfile.TemporaryDirectory[str] | None = None
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
            self._folder = tempfile.TemporaryDirectory(prefix="guard-", ignore_cleanup_errors=True)
            url = url.set(database=f"{self._folder.name}/guard.db")
        options: dict[str, Any] = {}
        if self.dialect == "sqlite":
            _make_folder(Path(str(url.database)).parent)
            self._presence, self.opened_alone = await asyncio.to_thread(_be_present, f"{url.database}.lock")
            options["connect_args"] = {"timeout": BUSY_TIMEOUT_S, "factory": _SqliteConnection}
        try:
            self._engine = create_async_engine(url, pool_pre_ping=self.dialect != "sqlite", **options)
            if self.dialect == "sqlite":
                durability = "OFF" if self.is_temporary else "FULL"
                event.listen(self._engine.sync_engine, "connect", functools.partial(_prepare_sqlite, durability))
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
        except SQLAlchemyError as error:
            # Nothing about the statement is logged, since it may repeat content.
            detail = f": {_reason(error)}" if isinstance(error, OperationalError) else ""
            log.error("the database failed with %s%s", type(getattr(error, "orig", None) or error).__name__, detail)
            raise StoreUnavailable("The server's database failed, and nothing was changed. Try again later.") from None

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.dispose()
            self._engine = None
        if self._presence is not None:
            os.close(self._presence)
            self._presence = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None


def _with_driver(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise DatabaseError("GUARD_DATABASE_URL is not a URL. Use sqlite:///path or postgresql://...") from None
    driver = DRIVERS.get(parsed.drivername)
    if driver is None:
        raise DatabaseError("GUARD_DATABASE_URL must begin with sqlite:// or postgresql://.")
    return parsed.set(drivername=driver)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseError(
            f"The folder {folder} cannot be created: {error.strerror}. Check GUARD_DATA_DIR."
        ) from error


def _be_present(path: str) -> tuple[int, bool]:
    """Show other processes that the database is open, while the descriptor is open: the kernel closes it with us.

    Also returns whether no other process had it open. Raises DatabaseError.
    """
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except BlockingIOError:
            alone = False
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    except OSError as error:
        raise DatabaseError(f"The file {path} cannot be created: {error.strerror}.") from error
    return descriptor, alone


def _prepare_sqlite(durability: str, connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    # With WAL, readers and the writer do not wait for each other. With FULL, commits survive a power failure.
    for pragma in ("journal_mode=WAL", f"synchronous={durability}", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


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
