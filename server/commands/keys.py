"""`llama-guard-server keys create | list | revoke`: works on the database, whether a server is running or not."""

import argparse
import asyncio
import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from server.audit.ledger import KEYS, Ledger, ledger_of
from server.commands.days import seconds_of
from server.domain.caller import Scope
from server.domain.errors import GuardError, OperatorError, StoreUnavailable
from server.observation import lines
from server.observation.lines import said
from server.settings import Settings
from server.store.database import Database, DatabaseError, database_of
from server.store.keys import ApiKey, create, list_all, revoke
from server.store.pepper import pepper_of

log = logging.getLogger(__name__)

LARGEST_LIMIT = 2**31 - 1
"""The largest number that the column can hold."""


Command = Callable[[Database, Settings, argparse.Namespace], Awaitable[None]]


def run(settings: Settings, options: argparse.Namespace) -> int:
    """Run the command. Raises OperatorError if it cannot be done."""
    lines.set_up(settings.log_level, settings.log_format)
    commands: dict[str, Command] = {"create": _create, "list": _list, "revoke": _revoke}
    try:
        asyncio.run(_with_database(commands[options.keys_command], settings, options))
    except (DatabaseError, StoreUnavailable) as error:
        raise OperatorError(str(error)) from error
    return 0


async def _with_database(command: Command, settings: Settings, options: argparse.Namespace) -> None:
    database = database_of(settings)
    if database.is_temporary:
        raise OperatorError(
            "Keys in a temporary database would be lost at once. Name another database in GUARD_DATABASE_URL."
        )
    try:
        await database.open()
        await command(database, settings, options)
    finally:
        await database.close()


async def _create(database: Database, settings: Settings, options: argparse.Namespace) -> None:
    name = options.name.strip()
    if not (0 < len(name) <= 200 and name.isprintable()):
        raise OperatorError("The name of a key must have 1 to 200 printable characters.")
    limits = (options.requests_per_minute, options.tokens_per_minute)
    if not all(0 < limit <= LARGEST_LIMIT for limit in limits if limit is not None):
        raise OperatorError(f"A limit must be a whole number from 1 to {LARGEST_LIMIT}.")
    lasts = None if options.expires is None else seconds_of(options.expires, "--expires", least=1)
    ledger = await _ledger(settings)  # before the key is made: a trail that cannot be written begins no key
    key, made = await create(
        database,
        pepper_of(settings),
        name=name,
        scopes=map(Scope, options.scope or [Scope.MODERATE]),
        never_remote=options.never_remote,
        finished_prompts=options.finished_prompts,
        requests_per_minute=options.requests_per_minute,
        tokens_per_minute=options.tokens_per_minute,
        expires_at=None if lasts is None else int(time.time() + lasts),
    )
    try:
        await _record(ledger, "created", made)
    except GuardError as error:
        await revoke(database, made.id)
        raise OperatorError(f"{error.message} The new key is revoked.") from error
    log.info("key %s is created", made.id, extra=said(event="key_created", key_id=made.id))
    if options.json:
        _print(json.dumps({"key": key, **_document(made)}))
    else:
        # Only the key goes to standard output, so that a script can read it.
        print(f"guard: {made.id}, {_in_words(made)}; the key is shown only once:", file=sys.stderr)  # noqa: T201
        _print(key)


async def _list(database: Database, settings: Settings, options: argparse.Namespace) -> None:
    keys = await list_all(database)
    if options.json:
        _print(json.dumps([_document(key) for key in keys]))
        return
    if not keys:
        print("guard: there are no keys. Make one with `llama-guard-server keys create NAME`.", file=sys.stderr)  # noqa: T201
    for key in keys:
        _print(f"{key.id}  lgs_{key.prefix}_…  {_state(key):8}  {key.name}: {_in_words(key)}")


async def _revoke(database: Database, settings: Settings, options: argparse.Namespace) -> None:
    # A key is revoked first, and its record comes after: no full disk may keep a stolen key alive.
    key = await revoke(database, options.id)
    if key is None:
        raise OperatorError("No key has this id or prefix. `keys list` shows all keys.")
    log.info("key %s is revoked", key.id, extra=said(event="key_revoked", key_id=key.id))
    try:
        await _record(await _ledger(settings), "revoked", key)
    except (GuardError, OperatorError) as error:
        raise OperatorError(f"{key.id} is revoked, but the audit trail has no record of that: {error}") from error
    if options.json:
        _print(json.dumps(_document(key)))
    else:
        _print(f"{key.id} ({key.name}) is revoked; running servers refuse it within seconds")


async def _ledger(settings: Settings) -> Ledger | None:
    """The audit trail of this process, open, or None. Raises OperatorError."""
    ledger = ledger_of(settings, KEYS)
    if ledger is not None:
        await ledger.open()
    return ledger


async def _record(ledger: Ledger | None, change: str, key: ApiKey) -> None:
    """Record a change of a key, and close the trail. The key's name stays out: people write anything into it."""
    if ledger is None:
        return
    try:
        rights = _document(key)
        await ledger.key(change, rights.pop("id"), {name: rights[name] for name in rights if name not in _UNRECORDED})
    finally:
        await ledger.close()


_UNRECORDED = frozenset({"name", "prefix", "state"})


def _document(key: ApiKey) -> dict[str, Any]:
    """The public facts of a key. Times are seconds since 1970."""
    return {
        "id": key.id,
        "prefix": f"lgs_{key.prefix}",
        "name": key.name,
        "state": _state(key),
        "scopes": sorted(key.caller.scopes),
        "never_remote": key.caller.never_remote,
        "finished_prompts": key.caller.finished_prompts,
        "requests_per_minute": key.caller.requests_per_minute,
        "tokens_per_minute": key.caller.tokens_per_minute,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
    }


def _in_words(key: ApiKey) -> str:
    caller = key.caller
    limits = ((caller.requests_per_minute, "requests"), (caller.tokens_per_minute, "tokens"))
    words = ["may " + ", ".join(sorted(caller.scopes))]
    words += [f"{limit} {unit} a minute" for limit, unit in limits if limit is not None]
    words += ["never remote"] * caller.never_remote
    words += ["finished prompts"] * caller.finished_prompts
    if key.expires_at is not None:
        words.append(f"until {datetime.fromtimestamp(key.expires_at, UTC):%Y-%m-%d %H:%M} UTC")
    return "; ".join(words)


def _state(key: ApiKey) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= time.time() else "valid"


def _print(line: str) -> None:
    print(line)  # noqa: T201
