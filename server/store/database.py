"""The connection to SQLite or PostgreSQL, and the schema brought up to date when it opens."""

import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from server.store.tables import metadata

log = logging.getLogger(__name__)

DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_S = 30


class DatabaseError(Exception):
    """The database cannot be used. The message is for the operator and holds no password."""


class Database:
    """`await open()` once, then `begin()` a transaction whenever needed; `close()` at the end."""

    def __init__(self, url: str) -> None:
        """`url` as operators write it: `sqlite:///path`, `sqlite://` in memory, `postgresql://user:password@host/name`.

        Raises DatabaseError for anything else.
        """
        self._url = _with_driver(url)
        self._engine: AsyncEngine | None = None

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._url.get_backend_name()

    @property
    def in_memory(self) -> bool:
        return self.dialect == "sqlite" and self._url.database in (None, "", ":memory:")

    async def open(self) -> None:
        """Connect and bring the schema up to date. Raises DatabaseError."""
        if self._engine is not None:
            return
        if self.dialect == "sqlite" and not self.in_memory:
            _make_folder(Path(str(self._url.database)).parent)
        options: dict[str, Any] = {"connect_args": {"timeout": BUSY_TIMEOUT_S}} if self.dialect == "sqlite" else {}
        try:
            engine = create_async_engine(self._url, pool_pre_ping=self.dialect != "sqlite", **options)
            if self.dialect == "sqlite":
                event.listen(engine.sync_engine, "connect", _prepare_sqlite)
            async with engine.begin() as connection:
                # Nothing is ever migrated in memory, and Alembic takes its time.
                await connection.run_sync(metadata.create_all if self.in_memory else _upgrade)
        except (SQLAlchemyError, OSError, ImportError) as error:
            raise DatabaseError(f"{self._url.render_as_string()} cannot be used: {_reason(error)}") from error
        self._engine = engine

    @contextlib.asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed at the end of the block, rolled back when it raises."""
        if self._engine is None:
            raise RuntimeError("the database is not open")
        async with self._engine.begin() as connection:
            yield connection

    async def close(self) -> None:
        if self._engine is not None:
            await self._engine.dispose()
            self._engine = None


def _with_driver(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise DatabaseError("the database's URL cannot be read; write sqlite:///path or postgresql://...") from None
    driver = DRIVERS.get(parsed.drivername)
    if driver is None:
        raise DatabaseError("the database's URL must begin with sqlite:// or postgresql://")
    return parsed.set(drivername=driver)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseError(f"{folder} cannot be made: {error.strerror}") from error


def _prepare_sqlite(connection: Any, _: Any) -> None:
    cursor = connection.cursor()
    # Readers and the one writer do not wait for each other; what was committed survives a loss of power.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _reason(error: BaseException) -> str:
    """What the driver says, without the statement and its parameters."""
    original = getattr(error, "orig", None) or error
    return str(original).splitlines()[0] if str(original) else type(original).__name__
