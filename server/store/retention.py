"""How long what is stored is kept, and how it is erased: on schedule, and by command.

A table whose rows must not be kept for ever has one entry in `KINDS`. The schedule, the command and the erasure of all
that belongs to one key then know it.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, delete, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.errors import StoreUnavailable
from server.store.database import Database
from server.store.files import ENDED
from server.store.tables import batches, files

log = logging.getLogger(__name__)

EVERY_S = 600.0


@dataclass(frozen=True, slots=True)
class Which:
    """What is to be erased at `now`: everything that has expired, or what these fields name.

    `owner` is the id of a key, empty for what was stored without keys. `older_than_s` is an age in seconds. With both,
    only what is so old and of this owner.
    """

    now: float
    owner: str | None = None
    older_than_s: float | None = None

    @property
    def expired(self) -> bool:
        return self.owner is None and self.older_than_s is None

    def chosen(self, owner: ColumnElement[str], since: ColumnElement[int]) -> ColumnElement[bool]:
        """The rows that the fields name. `since` is the time from which the age of a row counts."""
        wanted = []
        if self.owner is not None:
            wanted.append(owner == self.owner)
        if self.older_than_s is not None:
            wanted.append(since <= self.now - self.older_than_s)
        return and_(*wanted)


Erase = Callable[[AsyncConnection, Which, int], Awaitable[int]]
"""Erases some of what it is asked for, and returns how much: 0 when nothing is left. Its last argument is for how many
seconds things are kept. Each call is a transaction of its own, so it should not be long."""


# --- Files and batches -----------------------------------------------------------------------------------


async def erase_files(connection: AsyncConnection, which: Which, keep_s: int) -> int:
    """One file, with its content. While a batch reads a file, only its owner's erasure deletes it."""
    if which.expired:
        latest = int(which.now) + keep_s
        too_late = or_(files.c.expires_at.is_(None), files.c.expires_at > latest)
        # Files of an earlier release, or of a longer retention. They get the whole time once more.
        await connection.execute(update(files).where(too_late).values(expires_at=latest))
        wanted = files.c.expires_at <= which.now
    else:
        wanted = which.chosen(files.c.owner, files.c.created_at)
    if which.owner is None or which.older_than_s is not None:
        read = select(batches.c.id).where(batches.c.input_file_id == files.c.id, batches.c.status.not_in(ENDED))
        wanted = and_(wanted, ~read.exists())
    file_id = (await connection.execute(select(files.c.id).where(wanted).limit(1))).scalar()
    return (await connection.execute(delete(files).where(files.c.id == file_id))).rowcount if file_id else 0


async def erase_batches(connection: AsyncConnection, which: Which, keep_s: int) -> int:
    """Up to a hundred batches that have ended, or whatever their state is if all of their owner is erased."""
    ended_at = func.coalesce(
        batches.c.completed_at, batches.c.failed_at, batches.c.expired_at, batches.c.cancelled_at, batches.c.created_at
    )
    if which.expired:
        its_files = (batches.c.output_file_id, batches.c.error_file_id)
        there = or_(files.c.expires_at.is_(None), files.c.expires_at > which.now)
        # Without its batch nobody would know what a file is.
        wanted = and_(
            ended_at <= which.now - keep_s, ~select(files.c.id).where(files.c.id.in_(its_files), there).exists()
        )
    else:
        wanted = which.chosen(batches.c.owner, ended_at)
    if which.owner is None or which.older_than_s is not None:
        wanted = and_(wanted, batches.c.status.in_(ENDED))
    some = (await connection.execute(select(batches.c.id).where(wanted).limit(100))).scalars().all()
    return (await connection.execute(delete(batches).where(batches.c.id.in_(some)))).rowcount if some else 0


KINDS: dict[str, Erase] = {"batches": erase_batches, "files": erase_files}
"""By the name that the command prints, in the order of erasure."""


# --- On schedule, and by command -------------------------------------------------------------------------


class Retention:
    """`run()` erases what has expired, now and then, until it is cancelled."""

    def __init__(
        self,
        database: Database,
        keep_s: int,
        *,
        now: Callable[[], float] = time.time,
        kinds: Mapping[str, Erase] = KINDS,
    ) -> None:
        self._database = database
        self._keep_s = keep_s
        self._now = now
        self._kinds = kinds

    async def run(self) -> None:
        while True:
            try:
                erased = await self.erase()
                if any(erased.values()):
                    log.info("erased what has expired: %s", in_words(erased))
                await self._database.tidy()
            except StoreUnavailable:
                pass  # logged where it happened
            except Exception as error:
                # A defect must not end the schedule.
                log.error("retention: defect %s", type(error).__name__)
            await asyncio.sleep(EVERY_S)

    async def erase(self, owner: str | None = None, older_than_s: float | None = None) -> dict[str, int]:
        """Erase what has expired, or what the arguments name (`Which`). How much of each kind. Raises StoreUnavailable.

        It may be ended at any moment: what is erased stays erased.
        """
        which = Which(self._now(), owner, older_than_s)
        erased = dict.fromkeys(self._kinds, 0)
        for name, erase in self._kinds.items():
            while True:
                async with self._database.begin() as connection:
                    count = await erase(connection, which, self._keep_s)
                if count == 0:
                    break
                erased[name] += count
        return erased


def in_words(erased: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in erased.items())
