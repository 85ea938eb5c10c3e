"""Nobody but its owner reads what is stored, whatever the umask says and whatever was there before."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert

from server.settings import Settings
from server.store import private
from server.store.database import Database, database_of
from server.store.pepper import read_or_make_pepper
from server.store.tables import files

ROW = {"owner": "", "purpose": "batch", "filename": "a", "bytes": 0, "created_at": 0}


@pytest.fixture(params=[0o000, 0o022, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def modes(folder: Path) -> dict[str, int]:
    return {file.name: mode(file) for file in folder.iterdir()}


def open_up(folder: Path) -> None:
    for file in folder.iterdir():
        file.chmod(0o666)
    folder.chmod(0o755)


async def write(database: Database) -> None:
    async with database.begin() as connection:
        await connection.execute(insert(files).values(id="file-1", **ROW))


async def test_a_new_database_is_its_owners(tmp_path: Path, umask: int) -> None:
    folder = tmp_path / "data"
    database = Database(f"sqlite:///{folder}/guard.db")
    await database.open()
    await write(database)
    assert mode(folder) == 0o700
    names = {"guard.db", "guard.db-wal", "guard.db-shm", "guard.db.lock"}
    assert modes(folder) == dict.fromkeys(names, 0o600)
    await database.close()


async def test_what_was_open_to_others_is_narrowed_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    url = f"sqlite:///{tmp_path}/guard.db"
    first = Database(url)
    await first.open()
    await write(first)
    open_up(tmp_path)
    second = Database(url)
    await second.open()
    await write_again(second)
    assert set(modes(tmp_path).values()) == {0o600}
    assert len(modes(tmp_path)) == 4
    assert "guard.db could be read or changed by others (mode 666)" in caplog.text
    # The folder is not ours alone: the operator named a path in it.
    assert mode(tmp_path) == 0o755
    await first.close()
    await second.close()


async def write_again(database: Database) -> None:
    async with database.begin() as connection:
        await connection.execute(insert(files).values(id="file-2", **ROW))


async def test_the_data_folder_is_narrowed_with_all_that_is_in_it(tmp_path: Path) -> None:
    open_up(tmp_path)
    pepper = read_or_make_pepper(tmp_path)
    open_up(tmp_path)
    assert read_or_make_pepper(tmp_path) == pepper
    assert (mode(tmp_path), mode(tmp_path / "pepper")) == (0o700, 0o600)
    open_up(tmp_path)
    database = database_of(Settings(data_dir=str(tmp_path), database_url=""))
    await database.open()
    assert read_or_make_pepper(tmp_path) == pepper
    assert (mode(tmp_path), set(modes(tmp_path).values())) == (0o700, {0o600})
    await database.close()


def test_less_than_the_owners_rights_stay_as_they_are(tmp_path: Path) -> None:
    (file := tmp_path / "file").touch()
    file.chmod(0o440)
    private.narrow(file)
    assert mode(file) == 0o400
    private.narrow(tmp_path / "nothing")


def test_what_cannot_be_narrowed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    (file := tmp_path / "file").touch()
    file.chmod(0o666)
    monkeypatch.setattr(Path, "chmod", refuse)
    private.narrow(file)
    assert "can be read or changed by others: Operation not permitted. Change its mode to 600." in caplog.text
