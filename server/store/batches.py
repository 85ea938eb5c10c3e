"""Batches, the results of their lines, and the server that works on each.

A server takes a batch for a short time (a lease) and renews the lease while it works. It can write only while it holds
the lease, so a server that was taken for dead cannot disturb the one that took over.
"""

import json
import logging
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Row, case, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.errors import Conflict, InvalidRequest, NotFound, TooManyBatches
from server.store import files
from server.store.database import Database
from server.store.files import FileWriter
from server.store.ids import Kind, is_id, new_id
from server.store.tables import batch_results, batch_suspects, batches

log = logging.getLogger(__name__)

WINDOW_S = 24 * 60 * 60
LEASE_S = 15.0
_PAGE = 64
"""Results in memory at once while a file is made of them. Each may be megabytes long."""


UNREADABLE = {
    "code": "unreadable_batch",
    "message": "What the server stored of this batch cannot be read. Create it again.",
    "param": None,
    "line": None,
}
"""The fault of a batch whose row is damaged."""


class Status(StrEnum):
    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in files.ENDED


_AT_WORK = tuple(status for status in Status if not status.ended)


class LeaseLost(Exception):
    """Another server works on the batch now, because this one did not renew its lease in time."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch, as in the table. Times are seconds since 1970."""

    id: str
    owner: str
    never_remote: bool
    finished_prompts: bool
    model: str | None
    endpoint: str
    completion_window: str
    input_file_id: str
    output_file_id: str | None
    error_file_id: str | None
    output_expires_after: int | None
    metadata: dict[str, str] | None
    errors: list[dict[str, Any]] | None
    status: Status
    total: int
    completed: int
    failed: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    created_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expires_at: int
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    falls: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """A batch that no server works on: the oldest one of its owner."""

    id: str
    owner: str


@dataclass(frozen=True, slots=True)
class LineResult:
    """The result of one input line (counted from 1): a line of the output file or, if `failed`, of the error file."""

    line: int
    failed: bool
    document: str
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


class Batches:
    """An owner sees only their own batches. All methods raise StoreUnavailable if the database fails."""

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._now = now

    # --- For callers -------------------------------------------------------------------------------------

    async def create(
        self,
        owner: str,
        *,
        never_remote: bool,
        finished_prompts: bool,
        endpoint: str,
        completion_window: str,
        input_file_id: str,
        output_expires_after: int | None,
        metadata: dict[str, str] | None,
        most_open: int = sys.maxsize,
    ) -> Batch:
        """Raises NotFound if there is no such file, InvalidRequest if it was not uploaded for batches.

        Raises TooManyBatches if `most_open` batches of the owner have not ended.
        """
        created_at = int(self._now())
        async with self._database.begin() as connection:
            await files.hold(connection, owner, input_file_id)
            await _check_open(connection, owner, most_open)
            try:
                file = await files.visible(connection, owner, input_file_id, self._now())
            except NotFound:
                raise NotFound("There is no such file.", param="input_file_id") from None
            if file.purpose != files.INPUT:
                raise InvalidRequest("The file's purpose must be 'batch'.", param="input_file_id")
            statement = insert(batches).values(
                id=new_id(Kind.BATCH),
                owner=owner,
                never_remote=never_remote,
                finished_prompts=finished_prompts,
                endpoint=endpoint,
                completion_window=completion_window,
                input_file_id=file.id,
                output_expires_after=output_expires_after,
                metadata=None if metadata is None else json.dumps(metadata),
                status=Status.VALIDATING,
                created_at=created_at,
                expires_at=created_at + WINDOW_S,
            )
            return _batch((await connection.execute(statement.returning(*_COLUMNS))).one())

    async def get(self, owner: str, batch_id: str) -> Batch:
        """Raises NotFound."""
        if is_id(Kind.BATCH, batch_id):
            query = select(*_COLUMNS).where(batches.c.id == batch_id, batches.c.owner == owner)
            async with self._database.begin() as connection:
                row = (await connection.execute(query)).first()
            if row is not None:
                return _batch(row)
        raise NotFound("There is no such batch.", param="batch_id")

    async def page(self, owner: str, *, after: str | None, limit: int) -> tuple[list[Batch], bool]:
        """Up to `limit` batches older than the batch `after`, newest first, and whether there are more."""
        query = select(*_COLUMNS).where(batches.c.owner == owner).order_by(batches.c.id.desc()).limit(limit + 1)
        if after is not None:
            query = query.where(batches.c.id < after)
        async with self._database.begin() as connection:
            found = [_batch(row) for row in await connection.execute(query)]
        return found[:limit], len(found) > limit

    async def cancel(self, owner: str, batch_id: str) -> Batch:
        """Raises NotFound, and Conflict if there is nothing left to cancel."""
        if is_id(Kind.BATCH, batch_id):
            statement = (
                update(batches)
                .where(
                    batches.c.id == batch_id,
                    batches.c.owner == owner,
                    batches.c.status.in_((Status.VALIDATING, Status.IN_PROGRESS)),
                )
                .values(status=Status.CANCELLING, cancelling_at=int(self._now()))
            )
            async with self._database.begin() as connection:
                await connection.execute(statement)
        batch = await self.get(owner, batch_id)
        if batch.status is not Status.CANCELLING:
            raise Conflict(f"The batch cannot be cancelled, because it is already {batch.status}.", param="batch_id")
        return batch

    # --- For a server at work ----------------------------------------------------------------------------

    async def waiting(self, *, besides: Collection[str], urgent_only: bool = False) -> list[Waiting]:
        """The oldest batch of each owner that no server works on. `urgent_only`: only those ready to be ended."""
        now = self._now()
        query = (
            select(func.min(batches.c.id), batches.c.owner)
            .where(batches.c.status.in_(_AT_WORK), _free(now), batches.c.id.not_in(besides))
            .group_by(batches.c.owner)
            .order_by(func.min(batches.c.id))
        )
        if urgent_only:
            query = query.where(or_(batches.c.status == Status.CANCELLING, batches.c.expires_at <= now))
        async with self._database.begin() as connection:
            return [Waiting(*row) for row in await connection.execute(query)]

    async def claim(self, worker: str, batch_id: str) -> Batch | None:
        """Lease a batch. None if another server was faster, or if the row cannot be read: it has failed then.

        The lease of another server that ran out is a fall: that server did not live to give it back.
        """
        now = self._now()
        other = (batches.c.worker.is_not(None)) & (batches.c.worker != worker)
        statement = (
            update(batches)
            .where(batches.c.id == batch_id, batches.c.status.in_(_AT_WORK), _free(now))
            .values(falls=batches.c.falls + case((other, 1), else_=0), worker=worker, worker_until=now + LEASE_S)
        )
        async with self._database.begin() as connection:
            row = (await connection.execute(statement.returning(*_COLUMNS))).first()
            try:
                return None if row is None else _batch(row)
            except Exception as error:
                # It must not keep the server from all other batches.
                log.error("%s: its row cannot be read (%s), so it has failed", batch_id, type(error).__name__)
                ending = {"status": Status.FAILED, "failed_at": int(now), "errors": json.dumps([UNREADABLE])}
                lost = {"metadata": None, "worker": None, "worker_until": None}
                await connection.execute(update(batches).where(batches.c.id == batch_id).values({**ending, **lost}))
                return None

    async def renew(self, batch_id: str, worker: str) -> Status:
        """Show that `worker` is still alive. Raises LeaseLost."""
        async with self._database.begin() as connection:
            return (await self._hold(connection, batch_id, worker)).status

    async def release(self, batch_id: str, worker: str, *, fell: bool = False) -> None:
        """Leave the batch to the next server. `fell`: this server can judge nothing any more."""
        async with self._database.begin() as connection:
            await connection.execute(
                update(batches)
                .where(batches.c.id == batch_id, batches.c.worker == worker)
                .values(worker=None, worker_until=None, falls=batches.c.falls + int(fell))
            )

    async def release_all(self) -> None:
        """For a server without others: the holder of any lease is dead."""
        async with self._database.begin() as connection:
            await connection.execute(
                update(batches)
                .where(batches.c.worker.is_not(None), batches.c.status.in_(_AT_WORK))
                .values(worker=None, falls=batches.c.falls + 1)
            )

    async def start(self, batch_id: str, worker: str, *, model: str, total: int) -> Batch:
        """The file is valid: from validating to in_progress, unless the batch was cancelled meanwhile."""
        return await self._move(batch_id, worker, Status.VALIDATING, Status.IN_PROGRESS, model=model, total=total)

    async def fail(self, batch_id: str, worker: str, errors: Sequence[dict[str, Any]]) -> Batch:
        """The file is not valid: from validating to failed, unless the batch was cancelled meanwhile."""
        return await self._move(batch_id, worker, Status.VALIDATING, Status.FAILED, errors=json.dumps(errors))

    async def finalize(self, batch_id: str, worker: str) -> Batch:
        """Every line has its result: from in_progress to finalizing, unless the batch was cancelled meanwhile."""
        return await self._move(batch_id, worker, Status.IN_PROGRESS, Status.FINALIZING)

    async def recorded(self, batch_id: str) -> set[int]:
        """The lines that have a result."""
        query = select(batch_results.c.line).where(batch_results.c.batch_id == batch_id)
        async with self._database.begin() as connection:
            return set((await connection.execute(query)).scalars())

    async def suspects(self, batch_id: str) -> dict[int, int]:
        """The lines that servers fell at while they judged them alone, and how often each was tried."""
        query = select(batch_suspects.c.line, batch_suspects.c.tries).where(batch_suspects.c.batch_id == batch_id)
        async with self._database.begin() as connection:
            return {row.line: row.tries for row in await connection.execute(query)}

    async def suspect(self, batch_id: str, worker: str, line: int) -> None:
        """Remember that `line` is judged alone from now on, until its result is recorded. Raises LeaseLost."""
        this = (batch_suspects.c.batch_id == batch_id, batch_suspects.c.line == line)
        async with self._database.begin() as connection:
            await self._hold(connection, batch_id, worker)
            again = update(batch_suspects).where(*this).values(tries=batch_suspects.c.tries + 1)
            if (await connection.execute(again)).rowcount == 0:
                await connection.execute(insert(batch_suspects).values(batch_id=batch_id, line=line, tries=1))

    async def record(self, batch_id: str, worker: str, results: Sequence[LineResult]) -> None:
        """Store and count results, all or none. Results that are already stored stay unchanged. Raises LeaseLost."""
        async with self._database.begin() as connection:
            await self._hold(connection, batch_id, worker)
            there = select(batch_results.c.line).where(
                batch_results.c.batch_id == batch_id, batch_results.c.line.in_([result.line for result in results])
            )
            known = set((await connection.execute(there)).scalars())
            new = [result for result in results if result.line not in known]
            if not new:
                return
            rows = [
                {"batch_id": batch_id, "line": result.line, "failed": result.failed, "document": result.document}
                for result in new
            ]
            await connection.execute(insert(batch_results), rows)
            await connection.execute(
                delete(batch_suspects).where(
                    batch_suspects.c.batch_id == batch_id, batch_suspects.c.line.in_([result.line for result in new])
                )
            )
            failed = sum(result.failed for result in new)
            await connection.execute(
                update(batches)
                .where(batches.c.id == batch_id)
                .values(
                    completed=batches.c.completed + len(new) - failed,
                    failed=batches.c.failed + failed,
                    input_tokens=batches.c.input_tokens + sum(result.input_tokens for result in new),
                    cached_tokens=batches.c.cached_tokens + sum(result.cached_tokens for result in new),
                    output_tokens=batches.c.output_tokens + sum(result.output_tokens for result in new),
                )
            )

    async def end(
        self,
        batch_id: str,
        worker: str,
        status: Status,
        errors: Sequence[dict[str, Any]] = (),
        *,
        keep_s: int | None = None,
    ) -> Batch:
        """Make the output and error files and end with `status`, in one transaction. Raises LeaseLost.

        The files are kept for `keep_s` seconds, or for less if the batch says so.
        """
        now = int(self._now())
        async with self._database.begin() as connection:
            batch = await self._hold(connection, batch_id, worker)
            statement = (
                update(batches)
                .where(batches.c.id == batch_id)
                .values(
                    {
                        "status": status,
                        f"{status}_at": now,
                        "output_file_id": await self._write(connection, batch, now, keep_s, failed=False),
                        "error_file_id": await self._write(connection, batch, now, keep_s, failed=True),
                        "errors": json.dumps(errors) if errors else None,
                        "worker": None,
                        "worker_until": None,
                    }
                )
            )
            for table in (batch_results, batch_suspects):
                await connection.execute(delete(table).where(table.c.batch_id == batch_id))
            return _batch((await connection.execute(statement.returning(*_COLUMNS))).one())

    async def _hold(self, connection: AsyncConnection, batch_id: str, worker: str) -> Batch:
        """Renew the lease, and keep others from the batch until the transaction ends. Raises LeaseLost."""
        statement = (
            update(batches)
            .where(batches.c.id == batch_id, batches.c.worker == worker)
            .values(worker_until=self._now() + LEASE_S)
        )
        row = (await connection.execute(statement.returning(*_COLUMNS))).first()
        if row is None:
            raise LeaseLost
        return _batch(row)

    async def _move(self, batch_id: str, worker: str, before: Status, after: Status, **values: Any) -> Batch:
        async with self._database.begin() as connection:
            batch = await self._hold(connection, batch_id, worker)
            if batch.status is not before:
                return batch
            values.update({"status": after, f"{after}_at": int(self._now())})
            if after.ended:
                values.update(worker=None, worker_until=None)
            statement = update(batches).where(batches.c.id == batch_id).values(values)
            return _batch((await connection.execute(statement.returning(*_COLUMNS))).one())

    async def _write(
        self, connection: AsyncConnection, batch: Batch, now: int, keep_s: int | None, *, failed: bool
    ) -> str | None:
        """The id of a new file with the results of one kind, in the order of lines. None if there are none."""
        query = (
            select(batch_results.c.line, batch_results.c.document)
            .where(batch_results.c.batch_id == batch.id, batch_results.c.failed == failed)
            .order_by(batch_results.c.line)
            .limit(_PAGE)
        )
        writer, last = None, 0
        while page := (await connection.execute(query.where(batch_results.c.line > last))).all():
            if writer is None:
                name = f"{batch.id}_{'error' if failed else 'output'}.jsonl"
                keep = min((s for s in (keep_s, batch.output_expires_after) if s is not None), default=None)
                writer = await FileWriter.begin(connection, batch.owner, files.OUTPUT, name, now, keep)
            for line, document in page:
                await writer.write(document.encode() + b"\n")
                last = line
        return None if writer is None else (await writer.end()).id


_COLUMNS = tuple(batches.c[field.name] for field in fields(Batch))


def _batch(row: Row[Any]) -> Batch:
    values = dict(row._mapping)
    documents = {name: _read(values[name]) for name in ("metadata", "errors")}
    return Batch(**{**values, **documents, "status": Status(values["status"])})


def _read(document: str | None) -> Any:
    """A stored document, None for one that is damaged: it must not hide the rest of its batch."""
    try:
        return None if document is None else json.loads(document)
    except ValueError:
        return None


def _free(now: float) -> ColumnElement[bool]:
    return or_(batches.c.worker.is_(None), batches.c.worker_until < now)


async def _check_open(connection: AsyncConnection, owner: str, most: int) -> None:
    """Raises TooManyBatches."""
    query = select(func.count()).where(batches.c.owner == owner, batches.c.status.in_(_AT_WORK))
    if (await connection.execute(query)).scalar_one() >= most:
        raise TooManyBatches(
            f"You have {most} batches that have not ended, which is the limit. Wait until one has ended, or cancel one."
            " The operator sets the limit with GUARD_MAX_OPEN_BATCHES."
        )
