"""The audit of one process: opened from the settings, and given what is to be recorded."""

import asyncio
import functools
import math
import os
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

from server import __version__
from server.audit.chain import BadLine, Secrets, parsed
from server.audit.content import LARGE, content_hash, size_of
from server.audit.places import Folder, Place
from server.audit.records import Facts, key_record, policy_hash, start_record, verdict_record
from server.audit.trail import Trail
from server.audit.writer import Writer
from server.domain.caller import Handling
from server.domain.conversation import Conversation
from server.domain.errors import OperatorError
from server.domain.policy import Policy
from server.domain.verdict import Verdict
from server.settings import Settings
from server.store.audit import AuditTable
from server.store.database import database_of
from server.store.pepper import pepper_of

SERVER, KEYS, DROP = "serve", "keys", "audit drop"
"""The programs that write a trail."""


class Ledger:
    """`await open()` once the database is open, then record; `await close()` at the end."""

    def __init__(self, settings: Settings, program: str, facts: Facts | None = None) -> None:
        """Raises DatabaseError if there is no pepper, and OperatorError for a place that cannot be used."""
        self._settings = settings
        self._program = program
        self._facts = facts
        self._secrets = Secrets.of(pepper_of(settings))
        check_places(settings)
        self._writer: Writer | None = None
        self._policy_hash = functools.lru_cache(functools.partial(policy_hash, self._secrets.facts))

    async def open(self) -> None:
        """Write the first record and its seal. Raises OperatorError."""
        try:
            await asyncio.to_thread(self._open)
        except OSError as error:
            raise OperatorError(
                f"The audit trail cannot be written: {error.strerror or type(error).__name__}. Check GUARD_AUDIT and"
                " GUARD_AUDIT_SEALS."
            ) from error

    def _open(self) -> None:
        settings = self._settings
        trail = begun_trail(settings, self._secrets, self._program, keep_s=settings.audit_retention or math.inf)
        writer = Writer(trail, seal_every_s=settings.audit_seal_interval, refuse=settings.audit_failure == "refuse")
        writer.start()
        self._writer = writer

    async def close(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            await writer.close()

    async def verdicts(
        self,
        given: Sequence[tuple[Verdict, Conversation]],
        policy: Policy,
        handling: Handling,
        started: float,
    ) -> None:
        """Record verdicts, each with the conversation that it was given on. `started` is a time of time.monotonic().

        Raises AuditUnavailable if the verdicts must not leave.
        """
        assert self._facts is not None
        seconds, now, chosen = time.monotonic() - started, time.time(), self._policy_hash(policy)
        contents = await self._contents([conversation for _, conversation in given])
        await self._write(
            [
                verdict_record(
                    verdict,
                    handling,
                    self._facts,
                    now=now,
                    policy=chosen,
                    content=content,
                    judged=conversation.judged.value,
                    seconds=seconds,
                )
                for (verdict, conversation), content in zip(given, contents, strict=True)
            ]
        )

    async def key(self, change: str, key_id: str, rights: Mapping[str, Any]) -> None:
        """Record that a key was `created` or `revoked`. Raises AuditUnavailable."""
        await self._write([key_record(time.time(), change, key_id, rights)])

    async def _contents(self, conversations: Sequence[Conversation]) -> list[str]:
        def hashes() -> list[str]:
            return [content_hash(self._secrets.content, conversation) for conversation in conversations]

        return await asyncio.to_thread(hashes) if sum(map(size_of, conversations)) >= LARGE else hashes()

    async def _write(self, bodies: Sequence[dict[str, Any]]) -> None:
        if self._writer is None:
            raise RuntimeError("the audit trail is not open")
        await self._writer.write(bodies)


def begun_trail(settings: Settings, secrets: Secrets, program: str, *, keep_s: float) -> Trail:
    """A chain of this process, with its first record and its seal. Raises OSError."""
    records, seals = places_of(settings)
    now = time.time()
    # Chains are read in the order of their names.
    name = f"{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%S%f}Z-{os.urandom(6).hex()}"
    keep_bytes = settings.audit_max_bytes or math.inf
    trail = Trail(secrets, records, seals, chain=name, keep_s=keep_s, keep_bytes=keep_bytes)
    trail.begin(start_record(secrets.facts, now, program, __version__, settings, _settings_before(records, program)))
    return trail


def ledger_of(settings: Settings, program: str, facts: Facts | None = None) -> Ledger | None:
    """The ledger of this deployment, None if it has no audit trail."""
    return Ledger(settings, program, facts) if settings.audit else None


def places_of(settings: Settings) -> tuple[Place, Place]:
    """The places of the records and of the seals."""
    records, seals = settings.places_of_audit
    return (
        # What a table keeps is described there without the words of this room, which stands above it.
        cast("Place", AuditTable(settings.database, "records"))
        if records is None
        else Folder(records, settings.audit_rotate_bytes),
        cast("Place", AuditTable(settings.database, "seals")) if seals is None else Folder(seals),
    )


def check_places(settings: Settings) -> None:
    """Raises OperatorError for an audit in a database that is deleted when it closes."""
    if None in settings.places_of_audit and database_of(settings).is_temporary:
        raise OperatorError(
            "The audit trail or its seals would be lost with a temporary database. Name another database in"
            " GUARD_DATABASE_URL, or folders in GUARD_AUDIT and GUARD_AUDIT_SEALS."
        )


def _settings_before(records: Place, program: str) -> Mapping[str, str]:
    """The hashes of the settings at the last start of the same program."""
    for chain in reversed(records.chains()):
        try:
            first = parsed(records.ends(chain)[0])[0]
        except BadLine:
            continue
        if first.get("event") == "start" and first.get("program") == program:
            hashes: Mapping[str, str] = first["settings"]["hashes"]
            return hashes
    return {}
