"""`erase` on the operator's database, with or without a server beside it."""

import asyncio
import functools
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from server.__main__ import ERROR, main
from server.domain.caller import Scope
from server.store.database import Database
from server.store.files import Files
from server.store.keys import create


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path}/guard.db"
    monkeypatch.setenv("GUARD_DATABASE_URL", url)
    monkeypatch.setenv("GUARD_DATA_DIR", str(tmp_path))
    return url


async def content() -> AsyncIterator[bytes]:
    yield b"x" * 10_000


async def filled(url: str) -> tuple[str, str]:
    """A file of nobody's and two of a key. The key's id and prefix."""
    database = Database(url)
    await database.open()
    _, key = await create(database, b"p" * 32, name="anna", scopes=[Scope.BATCH])
    day = 24 * 60 * 60
    for owner, then in ((key.id, 1_700_000_000.0), (key.id, 1_600_000_000.0), ("", 1_600_000_000.0)):
        files = Files(database, now=functools.partial(float, then))
        await files.add(owner, "batch", "a", content(), 10_000 * day)
    await database.close()
    return key.id, key.prefix


async def files_of(url: str, owner: str) -> int:
    database = Database(url)
    await database.open()
    listed, _ = await Files(database, now=lambda: 0.0).page(
        owner, purpose=None, after=None, limit=10, newest_first=True
    )
    await database.close()
    return len(listed)


def erased(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, int]:
    assert main(["erase", "--json", *arguments]) == 0
    counts: dict[str, int] = json.loads(capsys.readouterr().out)
    return counts


async def test_a_key_is_named_by_its_id_or_its_prefix(url: str) -> None:
    key_id, prefix = await filled(url)
    for name in (f"lgs_{prefix}", key_id):
        assert await asyncio.to_thread(main, ["erase", "--key", name]) == 0
        assert (await files_of(url, key_id), await files_of(url, "")) == (0, 1)


def test_without_options_only_what_has_expired_goes(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    key_id, _ = asyncio.run(filled(url))
    assert erased(capsys) == {"batches": 0, "files": 0}
    assert erased(capsys, "--key", key_id, "--older-than", "36500") == {"batches": 0, "files": 0}
    assert erased(capsys, "--older-than", "1") == {"batches": 0, "files": 3}
    assert main(["erase"]) == 0
    assert capsys.readouterr().out == "erased: 0 batches, 0 files\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--key", "lgs_nobody"], "No key has this id or prefix"),
        (["--older-than", "-1"], "0 to 36500 days"),
        (["--older-than", "nan"], "0 to 36500 days"),
    ],
)
def test_what_cannot_be_done_is_told(
    url: str, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["erase", *arguments]) == ERROR
    assert words in capsys.readouterr().err


def test_a_temporary_database_has_nothing_to_erase(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GUARD_DATABASE_URL", "sqlite://")
    assert main(["erase"]) == ERROR
    assert "GUARD_DATABASE_URL" in capsys.readouterr().err
