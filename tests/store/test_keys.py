"""Keys are told once, stored as digests, found by who holds them, and ended for good."""

import asyncio
import contextlib
import logging
import os
import re
import stat
import time
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from server.domain.caller import Caller, Scope
from server.domain.errors import KeysUnavailable, StoreUnavailable
from server.settings import Settings
from server.store.database import Database, DatabaseError
from server.store.keys import (
    FORM,
    READ_AGAIN_S,
    READ_EVERY_S,
    TRUSTED_S,
    ApiKey,
    Keyring,
    create,
    digest_of,
    list_all,
    revoke,
)
from server.store.pepper import pepper_of, read_or_make_pepper
from server.store.tables import api_keys
from tests.fakes import until

PEPPER = b"p" * 32


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


async def make(database: Database, name: str = "test", **fields: Any) -> tuple[str, ApiKey]:
    return await create(database, PEPPER, **{"name": name, "scopes": [Scope.MODERATE], **fields})


async def ring(database: Database, **clocks: Any) -> Keyring:
    keyring = Keyring(database, PEPPER, **clocks)
    await keyring.open()
    return keyring


# --- Made, listed, revoked --------------------------------------------------------------------------------


async def test_a_key_has_256_bits_and_a_form_that_scanners_find(database: Database) -> None:
    made = [await make(database) for _ in range(5)]
    for key, row in made:
        match = re.fullmatch(r"lgs_([a-z0-9]{12})_([A-Za-z0-9]{43})", key)
        assert match is not None
        assert FORM.fullmatch(key)
        assert match[1] == row.prefix
    assert 62**43 >= 2**256
    assert len({key.rpartition("_")[2] for key, _ in made}) == len({row.id for _, row in made}) == 5


async def test_a_key_is_listed_as_it_was_made(database: Database) -> None:
    expires_at = int(time.time()) + 1000
    _, plain = await make(database, "plain")
    _, full = await make(
        database,
        "full ✓",
        scopes=[Scope.ADMIN, Scope.BATCH],
        never_remote=True,
        finished_prompts=True,
        requests_per_minute=2**31 - 1,
        tokens_per_minute=7,
        expires_at=expires_at,
    )
    listed = {key.id: key for key in await list_all(database)}
    assert listed == {plain.id: plain, full.id: full}
    assert plain.caller == Caller(plain.id, frozenset({Scope.MODERATE}))
    assert full.caller == Caller(full.id, frozenset({Scope.ADMIN, Scope.BATCH}), True, True, 2**31 - 1, 7)
    assert (full.name, full.expires_at, full.revoked_at) == ("full ✓", expires_at, None)


async def test_nothing_that_is_stored_lets_anybody_in(database: Database) -> None:
    key, made = await make(database)
    async with database.begin() as connection:
        (row,) = (await connection.execute(select(api_keys))).all()
    secret = key.rpartition("_")[2]
    assert secret not in repr(row)
    assert secret.encode() not in row.digest
    assert row.digest == made.digest == digest_of(key, PEPPER) != digest_of(key, b"q" * 32)
    keyring = await ring(database)
    for stored in (made.id, made.prefix, f"lgs_{made.prefix}_{made.digest.hex()}", made.digest.hex()):
        assert await keyring.find(stored) is None


async def test_a_key_is_worth_nothing_under_another_pepper(database: Database) -> None:
    key, _ = await make(database)
    other = Keyring(database, b"q" * 32)
    await other.open()
    assert await other.find(key) is None


@pytest.mark.parametrize("form", ["{0.id}", "{0.prefix}", "lgs_{0.prefix}"])
async def test_revoked_by_id_or_prefix_and_only_that_one(database: Database, form: str) -> None:
    _, stays = await make(database)
    _, goes = await make(database)
    revoked = await revoke(database, form.format(goes))
    assert revoked is not None
    assert revoked.id == goes.id
    assert revoked.revoked_at is not None
    assert abs(revoked.revoked_at - time.time()) < 5
    assert {key.id: key.revoked_at for key in await list_all(database)} == {stays.id: None, goes.id: revoked.revoked_at}


@pytest.mark.parametrize("unknown", ["", "lgs_", "key_", "%", "lgs_%", "' OR 1=1 --", "_" * 12, "\0"])
async def test_nothing_else_is_revoked(database: Database, unknown: str) -> None:
    await make(database)
    with contextlib.suppress(StoreUnavailable):  # PostgreSQL has no text with a NUL in it
        assert await revoke(database, unknown) is None
    assert [key.revoked_at for key in await list_all(database)] == [None]


async def test_a_second_revocation_leaves_the_time_of_the_first(database: Database, monkeypatch: Any) -> None:
    _, key = await make(database)
    first = await revoke(database, key.id)
    monkeypatch.setattr(time, "time", lambda: 4_000_000_000.0)
    assert await revoke(database, key.id) == first


# --- Found ------------------------------------------------------------------------------------------------


async def test_who_presents_a_key_is_found_without_the_database(database: Database) -> None:
    key, made = await make(database, requests_per_minute=5)
    keyring = await ring(database)
    await database.close()
    for _ in range(3):
        assert await keyring.find(key) == made.caller


def mutations(key: str) -> list[str]:
    head, prefix, secret = key.split("_")
    changed = "A" if secret[-1] != "A" else "B"
    return [
        "",
        "lgs",
        head + "_" + prefix,
        key[:-1],
        key + "A",
        key + "\n",
        " " + key,
        key.upper(),
        key.lower() if key.lower() != key else key.swapcase(),
        key.swapcase(),
        key[:-1] + changed,
        f"{head}_{prefix}_{secret[1:]}{changed}",
        f"{head}_{'0' * 12}_{secret}",
        f"{head}_{prefix[::-1]}_{secret}",
        f"{head}-{prefix}-{secret}",
        f"sk_{prefix}_{secret}",
        f"{head}_{prefix}_{'é' * 43}",
        f"{head}_{prefix}_{'A' * 43}",
        key * 1000,
    ]


async def test_nothing_like_a_key_is_taken_for_it(database: Database) -> None:
    key, made = await make(database)
    clock = Clock()
    keyring = await ring(database, clock=clock)
    for presented in mutations(key):
        clock.now += 1
        assert await keyring.find(presented) is None, presented
    assert await keyring.find(key) == made.caller


async def test_a_secret_fits_its_own_prefix_only(database: Database) -> None:
    first, _ = await make(database)
    second, _ = await make(database)
    keyring = await ring(database)
    crossed = first.rpartition("_")[0] + "_" + second.rpartition("_")[2]
    assert await keyring.find(crossed) is None


async def test_a_key_made_a_moment_ago_is_found_at_once(database: Database, database_url: str) -> None:
    """As `keys create` makes it: in another process, over another connection."""
    keyring = await ring(database)
    beside = Database(database_url)
    await beside.open()
    for _ in range(3):
        key, made = await make(beside)
        assert await keyring.find(key) == made.caller
    await beside.close()


async def test_a_revocation_is_obeyed_when_the_keys_are_read_again(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.store.keys.READ_EVERY_S", 0.02)
    key, made = await make(database)
    keyring = await ring(database)
    watch = asyncio.create_task(keyring.watch())
    assert await keyring.find(key) == made.caller
    beside = Database(database_url)
    await beside.open()
    await revoke(beside, made.id)
    async with asyncio.timeout(5):
        while await keyring.find(key) is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)
    await beside.close()


def test_a_revocation_is_obeyed_within_seconds() -> None:
    assert READ_EVERY_S <= 5


async def test_a_key_ends_when_it_expires(database: Database) -> None:
    now = Clock(2000.0)
    key, made = await make(database, expires_at=3000)
    keyring = await ring(database, now=now)
    now.now = 2999.9
    assert await keyring.find(key) == made.caller
    now.now = 3000.0
    assert await keyring.find(key) is None
    assert await (await ring(database, now=now)).find(key) is None


# --- What a flood of wrong keys costs ----------------------------------------------------------------------


class Counted(Keyring):
    reads = 0

    async def _read(self) -> None:
        self.reads += 1
        await super()._read()


async def test_wrong_keys_share_their_looks_into_the_database(database: Database) -> None:
    key, made = await make(database)
    keyring = Counted(database, PEPPER)
    await keyring.open()
    wrong = [f"lgs_{index:012d}_{'A' * 43}" for index in range(400)]
    started = time.monotonic()
    found = await asyncio.gather(*map(keyring.find, wrong))
    seconds = time.monotonic() - started
    assert found == [None] * 400
    assert keyring.reads <= 2 + seconds / READ_AGAIN_S
    assert await keyring.find(key) == made.caller


async def test_what_is_no_key_by_its_form_costs_nothing(database: Database) -> None:
    keyring = Counted(database, PEPPER)
    await keyring.open()
    for presented in ("", "none", "sk-1234", "lgs_short_key", "lgs_" + "0" * 1000):
        assert await keyring.find(presented) is None
    assert keyring.reads == 1


async def test_a_wrong_secret_goes_the_same_way_as_an_unknown_prefix(database: Database) -> None:
    key, _ = await make(database)
    looks = []
    for presented in (key[:-1] + ("A" if key[-1] != "A" else "B"), f"lgs_{'0' * 12}_{'A' * 43}"):
        keyring = Counted(database, PEPPER)
        await keyring.open()
        await keyring.find(presented)
        looks.append(keyring.reads)
    assert looks == [2, 2]


# --- The database is away ---------------------------------------------------------------------------------


class Broken(Database):
    """Answers until it is told not to; what hangs then does so for him too who gives it up."""

    fault: BaseException | None = None

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.answers = asyncio.Event()
        self.answers.set()

    @contextlib.asynccontextmanager
    async def begin(self) -> AsyncIterator[Any]:
        answered = asyncio.ensure_future(self.answers.wait())
        try:
            await asyncio.shield(answered)
        except asyncio.CancelledError:
            await answered
            raise
        if self.fault is not None:
            raise self.fault
        async with super().begin() as connection:
            yield connection


@pytest.fixture
async def broken(tmp_path: Path) -> AsyncIterator[Broken]:
    database = Broken(f"sqlite:///{tmp_path}/guard.db")
    await database.open()
    yield database
    database.fault = None
    database.answers.set()
    await database.close()


FAULTS = [OSError("canary"), StoreUnavailable("it is away"), RuntimeError("canary"), ValueError("canary")]


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
async def test_known_keys_are_believed_for_a_while_and_unknown_ones_never(
    broken: Broken, fault: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    key, made = await make(broken)
    clock = Clock()
    keyring = await ring(broken, clock=clock)
    read_at = clock.now
    broken.fault = fault
    unknown = f"lgs_{'0' * 12}_{'A' * 43}"
    for _ in range(3):
        clock.now += 1
        with pytest.raises(KeysUnavailable):
            await keyring.find(unknown)
        assert await keyring.find(key) == made.caller
    assert await keyring.find("no key at all") is None
    clock.now = read_at + TRUSTED_S
    assert await keyring.find(key) == made.caller
    assert keyring.reason_not_ready() is None
    clock.now = read_at + TRUSTED_S + 0.1
    with pytest.raises(KeysUnavailable):
        await keyring.find(key)
    assert keyring.reason_not_ready() == "API keys cannot be read from the database"
    broken.fault = None
    clock.now += 1
    assert await keyring.find(unknown) is None
    assert keyring.reason_not_ready() is None
    assert await keyring.find(key) == made.caller
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"], "each change once"
    assert "canary" not in caplog.text


async def test_a_damaged_database_file_is_read_again_once_it_is_restored(tmp_path: Path) -> None:
    file = tmp_path / "guard.db"
    database = Database(f"sqlite:///{file}")
    await database.open()
    key, made = await make(database)
    await database.tidy()  # all of it is in the file
    clock = Clock()
    keyring = await ring(database, clock=clock)
    # Connections that have read nothing yet, as after a time of many requests.
    assert database._engine is not None
    await database._engine.dispose()
    whole = file.read_bytes()
    overwrite(file, b"zebra" * (len(whole) // 5))
    clock.now += TRUSTED_S + 1
    for _ in range(3):
        clock.now += 1
        with pytest.raises(KeysUnavailable):
            await keyring.find(key)
    assert keyring.reason_not_ready() is not None
    overwrite(file, whole)
    clock.now += 1
    assert await keyring.find(f"lgs_{'0' * 12}_{'A' * 43}") is None
    assert await keyring.find(key) == made.caller
    assert keyring.reason_not_ready() is None
    await database.close()


def overwrite(file: Path, content: bytes) -> None:
    """In place, as a disk that fails does."""
    with file.open("r+b") as sink:
        sink.write(content)


@pytest.mark.parametrize("damage", [{"scopes": "moderate,zebra"}, {"scopes": ""}], ids=str)
async def test_a_damaged_row_is_no_key_and_takes_no_other_along(
    database: Database, caplog: pytest.LogCaptureFixture, damage: dict[str, Any]
) -> None:
    (key, made), (other, others) = await make(database), await make(database)
    async with database.begin() as connection:
        await connection.execute(update(api_keys).where(api_keys.c.id == made.id).values(**damage))
    clock = Clock()
    keyring = await ring(database, clock=clock)
    assert await keyring.find(other) == others.caller
    for _ in range(3):
        clock.now += 1
        assert await keyring.find(key) is None
    assert [record.getMessage() for record in caplog.records if made.id in record.getMessage()] == [
        f"the row of API key {made.id!r} cannot be read (ValueError): it is refused"
    ]
    assert [listed.id for listed in await list_all(database)] == [others.id]


async def test_a_database_that_hangs_holds_nobody_for_long(broken: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.store.keys.READ_TIMEOUT_S", 0.05)
    key, made = await make(broken)
    clock = Clock()
    keyring = Counted(broken, PEPPER, clock=clock)
    await keyring.open()
    broken.answers.clear()
    for _ in range(3):
        clock.now += 1
        unknown = asyncio.create_task(keyring.find(f"lgs_{'0' * 12}_{'A' * 43}"))
        assert await keyring.find(key) == made.caller
        # Who waits for it with a timeout of its own would wait for the cancelled statement as well.
        await asyncio.wait({unknown}, timeout=5)
        assert unknown.done()
        assert isinstance(unknown.exception(), KeysUnavailable)
    assert keyring.reads == 2, "no second question beside one that hangs"


async def test_a_database_that_hung_is_read_again(broken: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.store.keys.READ_TIMEOUT_S", 0.02)
    monkeypatch.setattr("server.store.keys.READ_AGAIN_S", 0.01)
    monkeypatch.setattr("server.store.keys.READ_EVERY_S", 0.01)
    key, made = await make(broken)
    keyring = Counted(broken, PEPPER)
    await keyring.open()
    broken.answers.clear()
    watch = asyncio.create_task(keyring.watch())
    await until(lambda: keyring.reads == 2)
    assert await keyring.find(key) == made.caller
    broken.answers.set()
    await revoke(broken, made.id)
    later, also = await make(broken)
    async with asyncio.timeout(10):
        while await found_by(keyring, later) != also.caller or await found_by(keyring, key) is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)


async def found_by(keyring: Keyring, key: str) -> Caller | KeysUnavailable | None:
    try:
        return await keyring.find(key)
    except KeysUnavailable as error:
        return error


async def test_a_defect_does_not_end_the_watch(broken: Broken, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.store.keys.READ_EVERY_S", 0.01)
    keyring = Counted(broken, PEPPER)
    await keyring.open()
    broken.fault = ZeroDivisionError()
    watch = asyncio.create_task(keyring.watch())
    async with asyncio.timeout(5):
        while keyring.reads < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert not watch.done()
    watch.cancel()
    await asyncio.gather(watch, return_exceptions=True)


async def test_a_start_without_the_keys_fails(broken: Broken) -> None:
    broken.fault = StoreUnavailable("It is away.")
    with pytest.raises(StoreUnavailable):
        await ring(broken)


# --- The pepper -------------------------------------------------------------------------------------------


def test_the_pepper_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "data"
    umask = os.umask(0)
    try:
        pepper = read_or_make_pepper(folder)
    finally:
        os.umask(umask)
    assert len(pepper) == 32
    assert read_or_make_pepper(folder) == pepper
    assert [file.name for file in folder.iterdir()] == ["pepper"]
    assert stat.S_IMODE((folder / "pepper").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert read_or_make_pepper(tmp_path / "other") != pepper


def test_processes_that_make_it_at_the_same_time_agree(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4) as pool:
        for index in range(20):
            folders = [tmp_path / str(index)] * 8
            assert len(set(pool.map(read_or_make_pepper, folders))) == 1
            assert [file.name for file in folders[0].iterdir()] == ["pepper"]


@pytest.mark.parametrize("content", ["", "00" * 31, "00" * 33, "no hexadecimal digits", "é" * 32])
def test_half_a_pepper_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    (tmp_path / "pepper").write_text(content)
    with pytest.raises(DatabaseError, match="holds no pepper"):
        read_or_make_pepper(tmp_path)
    assert (tmp_path / "pepper").read_text() == content


def test_a_folder_that_cannot_be_made_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatabaseError, match="cannot be read or created"):
        read_or_make_pepper(tmp_path / "file" / "data")


def test_the_operators_pepper_needs_no_file(tmp_path: Path) -> None:
    settings = Settings(key_pepper="x" * 32, data_dir=str(tmp_path / "data"))
    assert pepper_of(settings) == b"x" * 32
    assert not (tmp_path / "data").exists()
    assert pepper_of(Settings(data_dir=str(tmp_path / "data"))) == read_or_make_pepper(tmp_path / "data")
