"""API keys: created, listed, revoked, and looked up when a request presents one.

A key is `lgs_<prefix>_<secret>`. The prefix is not secret and serves to look the key up; the secret has 256 random
bits. The database holds the key's HMAC-SHA-256 under the server's pepper, never the key.
"""

import asyncio
import hashlib
import hmac
import logging
import math
import re
import secrets
import string
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, RowMapping, or_, select, update

from server.domain.caller import Caller, Scope
from server.domain.errors import KeysUnavailable
from server.store.database import Database
from server.store.tables import api_keys

log = logging.getLogger(__name__)

PREFIX_LENGTH = 12
SECRET_LENGTH = 43
"""Letters and digits: the least that hold 256 bits."""

FORM = re.compile(rf"lgs_(?P<prefix>[a-z0-9]{{{PREFIX_LENGTH}}})_[A-Za-z0-9]{{{SECRET_LENGTH}}}")
"""A pattern that scanners for leaked secrets may use."""

READ_EVERY_S = 5.0
"""A running server reads its keys this often. A revocation takes effect after at most this time."""

READ_AGAIN_S = 0.25
"""An unknown key may have been created just now, so the keys are read again, but never more often than this."""

READ_TIMEOUT_S = 2.0

TRUSTED_S = 60.0
"""Known keys stay valid for this time while the database does not answer. After it every key is refused."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One row of the table. Times are whole seconds since 1970."""

    caller: Caller
    prefix: str
    name: str
    digest: bytes
    created_at: int
    expires_at: int | None
    revoked_at: int | None

    @property
    def id(self) -> str:
        return self.caller.owner


async def create(
    database: Database,
    pepper: bytes,
    *,
    name: str,
    scopes: Iterable[Scope],
    never_remote: bool = False,
    finished_prompts: bool = False,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    expires_at: int | None = None,
) -> tuple[str, ApiKey]:
    """Create a key. The first value is the key itself, which cannot be shown again.

    Raises StoreUnavailable.
    """
    prefix = _random(string.ascii_lowercase + string.digits, PREFIX_LENGTH)
    key = f"lgs_{prefix}_{_random(string.ascii_letters + string.digits, SECRET_LENGTH)}"
    row = {
        "id": f"key_{uuid.uuid4().hex}",
        "prefix": prefix,
        "digest": digest_of(key, pepper),
        "name": name,
        "scopes": ",".join(sorted(set(scopes))),
        "never_remote": never_remote,
        "finished_prompts": finished_prompts,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "created_at": int(time.time()),
        "expires_at": expires_at,
        "revoked_at": None,
    }
    async with database.begin() as connection:
        await connection.execute(api_keys.insert().values(row))
    return key, _api_key(row)


async def list_all(database: Database) -> list[ApiKey]:
    """Every key ever created, oldest first. Raises StoreUnavailable."""
    async with database.begin() as connection:
        rows = await connection.execute(select(api_keys).order_by(api_keys.c.created_at, api_keys.c.id))
        return list(_readable(rows, set()))


async def revoke(database: Database, id_or_prefix: str) -> ApiKey | None:
    """Revoke a key for good. None if no key has this id or prefix. Raises StoreUnavailable.

    The prefix may include the `lgs_` of the key.
    """
    this = _named(id_or_prefix)
    async with database.begin() as connection:
        # A second revocation does not change the time of the first.
        await connection.execute(
            update(api_keys).where(this, api_keys.c.revoked_at.is_(None)).values(revoked_at=int(time.time()))
        )
        row = (await connection.execute(select(api_keys).where(this))).first()
    return None if row is None else _api_key(row._mapping)


async def find_owner(database: Database, id_or_prefix: str) -> str | None:
    """The id of the key with this id or prefix, which owns what the key stored. Raises StoreUnavailable."""
    async with database.begin() as connection:
        found: str | None = (await connection.execute(select(api_keys.c.id).where(_named(id_or_prefix)))).scalar()
    return found


def _named(id_or_prefix: str) -> ColumnElement[bool]:
    return or_(api_keys.c.id == id_or_prefix, api_keys.c.prefix == id_or_prefix.removeprefix("lgs_"))


def digest_of(key: str, pepper: bytes) -> bytes:
    return hmac.digest(pepper, key.encode(), hashlib.sha256)


class Keyring:
    """All keys that are valid now, in memory, so that no request waits for the database.

    `open()` reads them, `watch()` reads them again every READ_EVERY_S until it is cancelled.
    """

    def __init__(
        self,
        database: Database,
        pepper: bytes,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`clock` measures the age of the last reading, `now` is compared with a key's expiry. Both are in seconds."""
        self._database = database
        self._pepper = pepper
        self._clock = clock
        self._now = now
        self._keys: dict[str, ApiKey] = {}
        self._unreadable: set[str] = set()
        self._read_at = self._tried_at = -float("inf")
        self._reading = asyncio.Lock()
        self._under_way: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._keys)

    async def open(self) -> None:
        """Read the keys for the first time. Raises StoreUnavailable."""
        self._tried_at = self._clock()
        await self._read()

    async def watch(self) -> None:
        """Keep up with keys that are created and revoked elsewhere, until cancelled."""
        while True:
            await asyncio.sleep(READ_EVERY_S)
            await self._read_again(self._clock())

    def reason_not_ready(self) -> str | None:
        """Why no key can be checked any more, None while keys can be."""
        return "API keys cannot be read from the database" if self._too_old else None

    @property
    def _too_old(self) -> bool:
        return self._clock() - self._read_at > TRUSTED_S

    async def find(self, presented: str) -> Caller | None:
        """The holder of this key, or None. Raises KeysUnavailable if the key cannot be checked."""
        if FORM.fullmatch(presented) is None:
            return None
        key = self._match(presented)
        if key is None:
            # A wrong secret takes the same path as an unknown prefix.
            await self._read_again(self._clock())
            key = self._match(presented)
        failing = self._tried_at > self._read_at
        if self._too_old or (key is None and failing):
            raise KeysUnavailable(
                "The server cannot check API keys at the moment. Try again in a few seconds.",
                retry_after=math.ceil(READ_EVERY_S),
            )
        return None if key is None else key.caller

    def _match(self, presented: str) -> ApiKey | None:
        key = self._keys.get(presented[len("lgs_") :][:PREFIX_LENGTH])
        right = hmac.compare_digest(digest_of(presented, self._pepper), key.digest if key else bytes(32))
        if key is None or not right or (key.expires_at is not None and key.expires_at <= self._now()):
            return None
        return key

    async def _read_again(self, asked_at: float) -> None:
        """Wait for a reading that began after `asked_at`. All who wait at the same time share it."""
        async with self._reading:
            if self._tried_at > asked_at:
                return
            await asyncio.sleep(max(0.0, self._tried_at + READ_AGAIN_S - self._clock()))
            failed_before = self._tried_at > self._read_at
            self._tried_at = self._clock()
            try:
                await self._read_in_time()
            except Exception as error:  # even a defect must not end the watch
                if not failed_before:
                    reason = type(error).__name__
                    log.error("API keys cannot be read (%s): known keys stay valid for %d s", reason, TRUSTED_S)
            else:
                if failed_before:
                    log.info("API keys can be read again")

    async def _read_in_time(self) -> None:
        """Raises TimeoutError. A slow reading goes on in the background, since its cancellation may hang too."""
        if self._under_way is None or self._under_way.done():
            self._under_way = asyncio.create_task(self._read())
        done, _ = await asyncio.wait({self._under_way}, timeout=READ_TIMEOUT_S)
        if not done:
            raise TimeoutError
        self._under_way.result()

    async def _read(self) -> None:
        began = self._tried_at
        expires = api_keys.c.expires_at
        valid = (api_keys.c.revoked_at.is_(None), or_(expires.is_(None), expires > int(self._now())))
        async with self._database.begin() as connection:
            rows = await connection.execute(select(api_keys).where(*valid))
            self._keys = {key.prefix: key for key in _readable(rows, self._unreadable)}
        self._read_at = began


def _random(alphabet: str, length: int) -> str:
    return "".join(secrets.choice(alphabet) for _ in range(length))


def _readable(rows: Iterable[Row[Any]], known: set[str]) -> Iterator[ApiKey]:
    """The keys of all rows that can be read. A damaged row is no key, and takes no other key along.

    It is logged, and its id added to `known`, unless it is there already.
    """
    for row in rows:
        try:
            yield _api_key(row._mapping)
        except Exception as error:
            if row.id not in known:
                known.add(row.id)
                log.error("the row of API key %r cannot be read (%s): it is refused", row.id, type(error).__name__)


def _api_key(row: RowMapping | dict[str, Any]) -> ApiKey:
    return ApiKey(
        caller=Caller(
            id=row["id"],
            scopes=frozenset(map(Scope, row["scopes"].split(","))),
            never_remote=row["never_remote"],
            finished_prompts=row["finished_prompts"],
            requests_per_minute=row["requests_per_minute"],
            tokens_per_minute=row["tokens_per_minute"],
        ),
        prefix=row["prefix"],
        name=row["name"],
        digest=row["digest"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
    )
