"""The audit trail's lines in the database, for the thread that writes them: it blocks, unlike the rest of the store."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, create_engine, delete, event, func, insert, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from server.store.database import BUSY_TIMEOUT_S, DRIVERS, prepare_sqlite
from server.store.tables import audit_lines

READ_AT_ONCE = 1000


class AuditTable:
    """Keeps the lines of chains in the rows of one `kind`, in a database whose schema is up to date.

    It does what server.audit.places.Place says. Failures of the database are OSErrors.
    """

    def __init__(self, url: str, kind: str) -> None:
        parsed = make_url(url)
        sqlite = parsed.drivername.startswith("sqlite")
        # The same databases as everywhere else, by drivers that block.
        driver = "sqlite" if sqlite else DRIVERS[parsed.drivername.partition("+")[0]]
        options: dict[str, Any] = {"connect_args": {"timeout": BUSY_TIMEOUT_S}} if sqlite else {"pool_pre_ping": True}
        self._engine = create_engine(parsed.set(drivername=driver), **options)
        if sqlite:
            event.listen(self._engine, "connect", lambda connection, _: prepare_sqlite("FULL", connection, _))
        self._kind = kind

    def append(self, chain: str, first: int, lines: Sequence[bytes]) -> None:
        rows = [
            {"kind": self._kind, "chain": chain, "number": number, "line": line.decode("ascii")}
            for number, line in enumerate(lines, start=first)
        ]
        with _failures(), self._engine.begin() as connection:
            connection.execute(insert(audit_lines), rows)

    def chains(self) -> list[str]:
        wanted = select(audit_lines.c.chain).where(audit_lines.c.kind == self._kind).distinct()
        with _failures(), self._engine.connect() as connection:
            return list(connection.execute(wanted.order_by(audit_lines.c.chain)).scalars())

    def lines(self, chain: str) -> Iterator["TableLine"]:
        last = -1
        while True:
            rows = self._read(chain, audit_lines.c.number > last, limit=READ_AT_ONCE)
            for last, content in rows:
                yield TableLine(f"{self._kind} of chain {chain}, row {last}", content.encode())
            if len(rows) < READ_AT_ONCE:
                return

    def ends(self, chain: str) -> tuple[bytes, bytes]:
        first = self._read(chain, audit_lines.c.number >= 0, limit=1)
        last = self._last(chain)
        return (first[0][1].encode(), last) if first and last else (b"", b"")

    def parts(self) -> Iterator["TablePart"]:
        """The oldest rows of each chain, one at a time: each may be dropped before the next is read."""
        for chain in self.chains():
            # The last row stays: the next record of a process that is still there needs something to follow.
            while len(rows := self._read(chain, audit_lines.c.number >= 0, limit=READ_AT_ONCE)) > 1:
                before = rows[0][0]
                size = sum(len(line) for _, line in rows[:-1])
                yield TablePart(chain, rows[-2][1].encode(), size, rows[-2][0], self._engine, self._kind)
                if self._first_number(chain) == before:
                    break

    def size(self) -> int:
        wanted = select(func.sum(func.length(audit_lines.c.line))).where(audit_lines.c.kind == self._kind)
        with _failures(), self._engine.connect() as connection:
            return int(connection.execute(wanted).scalar() or 0)

    def close(self) -> None:
        self._engine.dispose()

    def _read(self, chain: str, which: Any, *, limit: int) -> list[tuple[int, str]]:
        wanted = select(audit_lines.c.number, audit_lines.c.line).where(
            audit_lines.c.kind == self._kind, audit_lines.c.chain == chain, which
        )
        with _failures(), self._engine.connect() as connection:
            rows = connection.execute(wanted.order_by(audit_lines.c.number).limit(limit))
            return [(row.number, row.line) for row in rows]

    def _last(self, chain: str) -> bytes:
        mine = (audit_lines.c.kind == self._kind, audit_lines.c.chain == chain)
        wanted = select(audit_lines.c.line).where(*mine).order_by(audit_lines.c.number.desc()).limit(1)
        with _failures(), self._engine.connect() as connection:
            return str(connection.execute(wanted).scalar() or "").encode()

    def _first_number(self, chain: str) -> int | None:
        mine = (audit_lines.c.kind == self._kind, audit_lines.c.chain == chain)
        with _failures(), self._engine.connect() as connection:
            found: int | None = connection.execute(select(func.min(audit_lines.c.number)).where(*mine)).scalar()
            return found


@dataclass(frozen=True, slots=True)
class TableLine:
    """A row's line, and where it is."""

    where: str
    content: bytes
    whole: bool = True


@dataclass(frozen=True, slots=True)
class TablePart:
    """All rows of a chain up to number `through`, the one of the line `last`."""

    chain: str
    last: bytes
    size: int
    through: int
    engine: Engine
    kind: str

    def drop(self) -> None:
        mine = (audit_lines.c.kind == self.kind, audit_lines.c.chain == self.chain)
        with _failures(), self.engine.begin() as connection:
            connection.execute(delete(audit_lines).where(*mine, audit_lines.c.number <= self.through))


class _failures:  # noqa: N801 - it reads as a word of the statement that it guards
    """Turns what SQLAlchemy raises into OSError, without the statement and its parameters."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, SQLAlchemyError):
            original = getattr(error, "orig", None) or error
            raise OSError(0, f"the database failed with {type(original).__name__}") from None
