"""`llama-guard-server erase`: erases what has expired, what belongs to a key, or what is old, also beside a server."""

import argparse
import asyncio
import json

from server.commands.days import seconds_of
from server.domain.errors import OperatorError, StoreUnavailable
from server.settings import Settings
from server.store.database import Database, DatabaseError, database_of
from server.store.keys import find_owner
from server.store.retention import Retention, in_words


def run(settings: Settings, options: argparse.Namespace) -> int:
    """Run the command. Raises OperatorError if it cannot be done."""
    age = None if options.older_than is None else seconds_of(options.older_than, "--older-than")
    try:
        asyncio.run(_erase(database_of(settings), settings, options, age))
    except (DatabaseError, StoreUnavailable) as error:
        raise OperatorError(str(error)) from error
    return 0


async def _erase(database: Database, settings: Settings, options: argparse.Namespace, age: float | None) -> None:
    if database.is_temporary:
        raise OperatorError("A temporary database holds nothing. Name another one in GUARD_DATABASE_URL.")
    try:
        await database.open()
        owner = None
        if options.key is not None:
            owner = await find_owner(database, options.key)
            if owner is None:
                raise OperatorError("No key has this id or prefix. `keys list` shows all keys.")
        erased = await Retention(database, settings.retention).erase(owner, age)
        await database.give_space_back()
    finally:
        await database.close()
    print(json.dumps(erased) if options.json else f"erased: {in_words(erased)}")  # noqa: T201
