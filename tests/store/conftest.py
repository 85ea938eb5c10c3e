"""Both databases, each with the schema that the migrations make."""

from collections.abc import AsyncIterator

import pytest_asyncio
from sqlalchemy import event

from server.store.database import Database


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.open()
    yield database
    await database.close()


async def make_read_only(database: Database) -> None:
    """What a file system that was mounted read-only, or a standby, does to a server that runs."""
    assert database._engine is not None
    await database._engine.dispose()
    statement = (
        "PRAGMA query_only=ON"
        if database.dialect == "sqlite"
        else "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"
    )

    def forbid(connection, _):
        cursor = connection.cursor()
        cursor.execute(statement)
        cursor.close()
        connection.commit()

    event.listen(database._engine.sync_engine, "connect", forbid)
