"""Files and their content, in the same database as everything that refers to them."""

import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

from sqlalchemy import ColumnElement, case, delete, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from server.domain.errors import Conflict, NotFound, TooManyBytes
from server.store.database import Database
from server.store.ids import Kind, is_id, new_id
from server.store.tables import batches, file_chunks, files

CHUNK_BYTES = 2**20

SMALLEST = 4096
"""Bytes that a file counts for at least."""

INPUT, OUTPUT = "batch", "batch_output"
"""Purposes: a file that a batch reads, and one that it writes."""

ENDED = ("completed", "failed", "expired", "cancelled")
"""Statuses of a batch that no longer needs its input."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file without its content. Times are seconds since 1970. `expires_at` is None for a file that stays."""

    id: str
    owner: str
    purpose: str
    filename: str
    bytes: int
    created_at: int
    expires_at: int | None


class Files:
    """An owner sees only their own files. All methods raise StoreUnavailable if the database fails."""

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self._database = database
        self._now = now

    async def add(
        self,
        owner: str,
        purpose: str,
        filename: str,
        content: AsyncIterator[bytes],
        expires_after: int | None,
        most_bytes: int = sys.maxsize,
    ) -> StoredFile:
        """Store all of `content` or nothing. `expires_after` is in seconds from now.

        Raises TooManyBytes if all files of the owner would then hold more than `most_bytes`.
        """
        async with self._database.begin() as connection:
            room = most_bytes - await _stored(connection, owner)
            if room < SMALLEST:
                raise _too_many(most_bytes)
            writer = await FileWriter.begin(connection, owner, purpose, filename, int(self._now()), expires_after)
            async for piece in content:
                room -= len(piece)
                if room < 0:
                    raise _too_many(most_bytes)
                await writer.write(piece)
            return await writer.end()

    async def get(self, owner: str, file_id: str) -> StoredFile:
        """Raises NotFound."""
        async with self._database.begin() as connection:
            return await visible(connection, owner, file_id, self._now())

    async def page(
        self, owner: str, *, purpose: str | None, after: str | None, limit: int, newest_first: bool
    ) -> tuple[list[StoredFile], bool]:
        """Up to `limit` files after the file `after`, and whether there are more."""
        query = select(files).where(files.c.owner == owner, _unexpired(self._now()))
        if purpose is not None:
            query = query.where(files.c.purpose == purpose)
        if after is not None:
            query = query.where(files.c.id < after if newest_first else files.c.id > after)
        query = query.order_by(files.c.id.desc() if newest_first else files.c.id).limit(limit + 1)
        async with self._database.begin() as connection:
            found = [StoredFile(*row) for row in await connection.execute(query)]
        return found[:limit], len(found) > limit

    async def delete(self, owner: str, file_id: str) -> None:
        """Raises NotFound, and Conflict while a batch still reads the file."""
        async with self._database.begin() as connection:
            await hold(connection, owner, file_id)
            await visible(connection, owner, file_id, self._now())
            if (await connection.execute(select(batches.c.id).where(_reads(file_id)).limit(1))).first() is not None:
                raise Conflict("A batch that has not ended reads this file. Cancel the batch first.", param="id")
            await connection.execute(delete(files).where(files.c.id == file_id))

    async def content(self, file_id: str) -> AsyncIterator[bytes]:
        """The content in pieces. Raises NotFound if the file is deleted before the end."""
        async with self._database.begin() as connection:
            size = (await connection.execute(select(files.c.bytes).where(files.c.id == file_id))).scalar()
        if size is None:
            raise NotFound("The file is gone.")
        received, number = 0, 0
        while received < size:
            query = select(file_chunks.c.content).where(
                file_chunks.c.file_id == file_id, file_chunks.c.number == number
            )
            # One transaction for each piece, so that a slow reader does not block writers.
            async with self._database.begin() as connection:
                piece = (await connection.execute(query)).scalar()
            if piece is None:
                raise NotFound("The file is gone.")
            yield piece
            received += len(piece)
            number += 1


class FileWriter:
    """Writes one file in a transaction, in chunks of one size, so that no whole file is ever in memory."""

    def __init__(self, connection: AsyncConnection, file: StoredFile) -> None:
        self._connection = connection
        self._file = file
        self._buffer = bytearray()
        self._written = 0
        self._chunks = 0

    @classmethod
    async def begin(
        cls,
        connection: AsyncConnection,
        owner: str,
        purpose: str,
        filename: str,
        created_at: int,
        expires_after: int | None,
    ) -> "FileWriter":
        expires_at = None if expires_after is None else created_at + expires_after
        file = StoredFile(new_id(Kind.FILE), owner, purpose, filename, 0, created_at, expires_at)
        await connection.execute(insert(files).values({column: getattr(file, column.name) for column in files.c}))
        return cls(connection, file)

    async def write(self, piece: bytes) -> None:
        self._buffer += piece
        while len(self._buffer) >= CHUNK_BYTES:
            await self._flush()

    async def end(self) -> StoredFile:
        while self._buffer:
            await self._flush()
        await self._connection.execute(update(files).where(files.c.id == self._file.id).values(bytes=self._written))
        return replace(self._file, bytes=self._written)

    async def _flush(self) -> None:
        chunk = bytes(self._buffer[:CHUNK_BYTES])
        del self._buffer[:CHUNK_BYTES]
        await self._connection.execute(
            insert(file_chunks).values(file_id=self._file.id, number=self._chunks, content=chunk)
        )
        self._chunks += 1
        self._written += len(chunk)


async def hold(connection: AsyncConnection, owner: str, file_id: str) -> None:
    """Prevent others from deleting a file, or starting a batch on it, until the transaction ends."""
    if is_id(Kind.FILE, file_id):
        await connection.execute(
            update(files).where(files.c.id == file_id, files.c.owner == owner).values(owner=files.c.owner)
        )


async def visible(connection: AsyncConnection, owner: str, file_id: str, now: float) -> StoredFile:
    """An owner's file that has not expired. Raises NotFound."""
    if is_id(Kind.FILE, file_id):
        query = select(files).where(files.c.id == file_id, files.c.owner == owner, _unexpired(now))
        row = (await connection.execute(query)).first()
        if row is not None:
            return StoredFile(*row)
    raise NotFound("There is no such file.", param="id")


def _too_many(most_bytes: int) -> TooManyBytes:
    return TooManyBytes(
        f"Your files would hold more than {most_bytes} bytes. Delete files that you no longer need. The operator sets"
        " the limit with GUARD_MAX_STORED_BYTES.",
        param="file",
    )


async def _stored(connection: AsyncConnection, owner: str) -> int:
    """The bytes of an owner's files. Each counts as at least SMALLEST: it has a row however short it is."""
    counted = case((files.c.bytes < SMALLEST, SMALLEST), else_=files.c.bytes)
    query = select(func.coalesce(func.sum(counted), 0)).where(files.c.owner == owner)
    return int((await connection.execute(query)).scalar_one())


def _unexpired(now: float) -> ColumnElement[bool]:
    return or_(files.c.expires_at.is_(None), files.c.expires_at > now)


def _reads(file_id: str) -> ColumnElement[bool]:
    return (batches.c.input_file_id == file_id) & batches.c.status.not_in(ENDED)
