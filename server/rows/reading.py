"""Rows out of JSON Lines, CSV and Parquet, in constant memory. Errors name the file, the line and the cause."""

import csv
import gzip
import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from server.domain.errors import OperatorError
from server.rows.formats import format_of

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 1024
"""Rows of a Parquet file that are in memory at one time."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Placed:
    """A row, and where it stands: the number of its line, or of its row in Parquet, from 1."""

    place: int
    row: Row


class Source:
    """The rows of one file."""

    def __init__(self, file: Path) -> None:
        """Raises OperatorError if the file's name or its head does not tell what is in it."""
        self.file = file
        self._format = format_of(file)
        self.columns = self._columns()
        """The names of all columns. None for JSON Lines, where each row has its own."""

    @property
    def unit(self) -> str:
        """What `Placed.place` counts."""
        return "row" if self._format.kind == "parquet" else "line"

    @property
    def schema(self) -> "pa.Schema | None":
        """The types of the columns, if the format has any."""
        if self._format.kind != "parquet":
            return None
        import pyarrow.parquet as pq

        return pq.read_schema(self.file)

    def __iter__(self) -> Iterator[Placed]:
        """All rows in order. Raises OperatorError."""
        read = {"jsonl": self._json_rows, "csv": self._csv_rows, "parquet": self._parquet_rows}[self._format.kind]
        try:
            yield from read()
        except OSError as error:
            raise OperatorError(f"{self.file}: cannot be read: {error.strerror or error}.") from error
        except (EOFError, zlib.error) as error:
            raise OperatorError(f"{self.file}: the compressed file is damaged or cut off.") from error
        except UnicodeDecodeError as error:
            raise OperatorError(
                f"{self.file}: is not in UTF-8: byte {error.object[error.start]:#04x} at position {error.start} of a"
                " block. Convert the file to UTF-8."
            ) from error

    def refuse(self, placed: Placed, why: str) -> OperatorError:
        return OperatorError(f"{self.file}: {self.unit} {placed.place}: {why}")

    def _columns(self) -> Sequence[str] | None:
        if self._format.kind == "jsonl":
            return None
        if self._format.kind == "csv":
            try:
                with self._open() as lines:
                    return next(csv.reader(lines, strict=True), [])
            except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
                raise OperatorError(f"{self.file}: the head cannot be read: {error}.") from error
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return cast("list[str]", pq.read_schema(self.file).names)
        except (OSError, pa.ArrowException) as error:
            raise OperatorError(f"{self.file}: is not a Parquet file that can be read.") from error

    def _open(self) -> IO[str]:
        # `utf-8-sig` drops a byte order mark, which spreadsheets write.
        if self._format.packed:
            return cast("IO[str]", gzip.open(self.file, "rt", encoding="utf-8-sig", newline=""))
        return self.file.open(encoding="utf-8-sig", newline="")

    def _json_rows(self) -> Iterator[Placed]:
        with self._open() as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError as error:
                    why = error.msg if isinstance(error, json.JSONDecodeError) else "not JSON"
                    at = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
                    raise OperatorError(
                        f"{self.file}: line {number} is not JSON ({why}{at}). Each line must be one JSON object."
                    ) from None
                if not isinstance(row, dict):
                    raise OperatorError(f"{self.file}: line {number} is not a JSON object.")
                yield Placed(number, row)

    def _csv_rows(self) -> Iterator[Placed]:
        csv.field_size_limit(sys.maxsize)
        with self._open() as lines:
            reader = csv.DictReader(lines, strict=True)
            try:
                for row in reader:
                    if None in row or None in row.values():
                        wanted = len(self.columns or ())
                        raise OperatorError(
                            f"{self.file}: line {reader.line_num} does not have {wanted} fields, as line 1 does."
                        )
                    yield Placed(reader.line_num, row)
            except csv.Error as error:
                raise OperatorError(
                    f"{self.file}: the row after line {reader.line_num} is not CSV: {error}."
                ) from error

    def _parquet_rows(self) -> Iterator[Placed]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.file) as file:
                number = 0
                for batch in file.iter_batches(BATCH_ROWS):
                    for row in batch.to_pylist():
                        number += 1
                        yield Placed(number, row)
        except pa.ArrowException as error:
            raise OperatorError(f"{self.file}: the Parquet file is damaged.") from error
