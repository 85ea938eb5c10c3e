"""Rows out of JSON Lines, CSV and Parquet, in constant memory. Errors name the file, the line and the cause."""

import csv
import gzip
import json
import shutil
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from server.domain.errors import OperatorError
from server.rows.formats import format_of

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

BATCH_ROWS = 64
"""Rows of a Parquet file that are in memory at one time. A row may hold pictures of megabytes."""

BUFFER_BYTES = 64 * 1024
"""Read at a time from a column of a Parquet file. Otherwise its part of a row group is read whole, which may be all."""

GZIP_MAGIC = b"\x1f\x8b"
UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Placed:
    """A row, and where it stands: the number of its line, or of its row in Parquet, from 1.

    `raw` is its text in the file, if the format is JSON Lines.
    """

    place: int
    row: Row
    raw: str = ""


@dataclass(frozen=True, slots=True)
class Survey:
    """What is known of a file after all of it has been read once. `columns` are in the order of their first use."""

    rows: int
    columns: Sequence[str]


class Source:
    """The rows of one file."""

    def __init__(self, file: Path) -> None:
        """Raises OperatorError if the file's name or its head does not tell what is in it."""
        self.file = file
        self.format = format_of(file)
        self._unpacked: IO[bytes] | None = None
        with self._told():
            self.columns = self._columns()
            """The names of all columns. None for JSON Lines, where each row has its own."""
        if self.columns is not None and (twice := [name for name, n in Counter(self.columns).items() if n > 1]):
            raise OperatorError(f"{file}: has several columns of the name {twice[0]!r}. Rename them.")

    @property
    def unit(self) -> str:
        """What `Placed.place` counts."""
        return "row" if self.format.kind == "parquet" else "line"

    def __iter__(self) -> Iterator[Placed]:
        """All rows in order. Raises OperatorError."""
        return self.rows()

    def rows(self, only: Collection[str] | None = None) -> Iterator[Placed]:
        """All rows in order. `only`: of a Parquet file, just these columns are read. Raises OperatorError."""
        with self._told():
            if self.format.kind == "jsonl":
                yield from self._json_rows()
            elif self.format.kind == "csv":
                yield from self._csv_rows()
            else:
                yield from self._parquet_rows(only)

    def survey(self) -> Survey:
        """Read the file once, so that what is wrong with it is told before any row is asked about."""
        if self.format.kind == "parquet":
            with self._told(), self._parquet() as file:
                return Survey(file.metadata.num_rows, self.columns or ())
        rows, columns = 0, dict.fromkeys(self.columns or ())
        for rows, placed in enumerate(self.rows(), start=1):  # noqa: B007
            if self.columns is None:
                columns.update(dict.fromkeys(placed.row))
        return Survey(rows, tuple(columns))

    def refuse(self, placed: Placed, why: str) -> OperatorError:
        return OperatorError(f"{self.file}: {self.unit} {placed.place}: {why}")

    # --- Parquet as it is, for Parquet ------------------------------------------------------------------------

    @property
    def schema(self) -> "pa.Schema":
        """The types of a Parquet file's columns."""
        with self._told(), self._parquet() as file:
            return file.schema_arrow

    def batches(self) -> "Iterator[pa.RecordBatch]":
        """The rows of a Parquet file, a few at a time and with their types. Raises OperatorError."""
        with self._told(), self._parquet() as file:
            yield from file.iter_batches(BATCH_ROWS, use_threads=False)

    # --- Opening ----------------------------------------------------------------------------------------------

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Faults of the file become OperatorErrors."""
        try:
            yield
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise OperatorError(f"{self.file}: the compressed file is damaged or cut off ({error}).") from error
        except FileNotFoundError as error:
            raise OperatorError(f"{self.file}: cannot be read: there is no such file.") from error
        except OSError as error:
            # pyarrow's own errors of this kind have no strerror, and are about the content.
            raise OperatorError(f"{self.file}: cannot be read: {error.strerror or _first_line(error)}.") from error
        except csv.Error as error:
            raise OperatorError(f"{self.file}: is not CSV: {error}.") from error
        except (ValueError, NotImplementedError, KeyError) as error:  # what pyarrow's own errors are
            if self.format.kind != "parquet":
                raise
            raise OperatorError(f"{self.file}: is not a Parquet file that can be read: {_first_line(error)}") from error

    @contextmanager
    def _bytes(self) -> Iterator[IO[bytes]]:
        if not self.format.packed:
            with self.file.open("rb") as stream:
                yield stream
            return
        with self.file.open("rb") as packed:
            if (magic := packed.read(2)) != GZIP_MAGIC:
                why = "is empty" if not magic else "is not compressed with gzip, although its name says so"
                raise OperatorError(f"{self.file}: {why}.")
        with gzip.open(self.file, "rb") as stream:
            yield cast("IO[bytes]", stream)

    def _lines(self) -> Iterator[str]:
        """The lines of a text file, with their ends. Lines end with a line feed, as in both formats."""
        with self._bytes() as stream:
            for number, line in enumerate(stream, start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")  # spreadsheets write this mark
                    if line.startswith(UTF_16_MARKS):
                        raise OperatorError(f"{self.file}: is in UTF-16. Convert the file to UTF-8.")
                try:
                    yield line.decode()
                except UnicodeDecodeError as error:
                    raise OperatorError(
                        f"{self.file}: line {number} is not in UTF-8: byte {line[error.start]:#04x} at position"
                        f" {error.start + 1} of the line. Convert the file to UTF-8."
                    ) from None

    @contextmanager
    def _parquet(self) -> "Iterator[pq.ParquetFile]":
        import pyarrow.parquet as pq

        if self.format.packed and self._unpacked is None:
            # Parquet is read from its end, so it is unpacked into a file that has no name.
            unpacked = tempfile.TemporaryFile()  # noqa: SIM115
            with self._bytes() as stream:
                shutil.copyfileobj(stream, unpacked)
            self._unpacked = unpacked
        with pq.ParquetFile(self._unpacked or self.file, buffer_size=BUFFER_BYTES, pre_buffer=False) as file:
            yield file

    # --- Each format ------------------------------------------------------------------------------------------

    def _columns(self) -> Sequence[str] | None:
        if self.format.kind == "jsonl":
            return None
        if self.format.kind == "csv":
            return next(csv.reader(self._lines(), strict=True), [])
        with self._parquet() as file:
            return cast("list[str]", file.schema_arrow.names)

    def _json_rows(self) -> Iterator[Placed]:
        for number, line in enumerate(self._lines(), start=1):
            if line.isspace():
                continue
            try:
                row = json.loads(line, object_pairs_hook=_unambiguous)
            except json.JSONDecodeError as error:
                raise self._not_json(number, f"{error.msg} at column {error.colno}") from None
            except RecursionError:
                raise self._not_json(number, "it is nested too deeply") from None
            except ValueError as error:
                raise self._not_json(number, str(error)) from None
            if not isinstance(row, dict):
                raise OperatorError(f"{self.file}: line {number} is not a JSON object.")
            yield Placed(number, row, line.strip())

    def _not_json(self, number: int, why: str) -> OperatorError:
        return OperatorError(f"{self.file}: line {number} is not JSON ({why}). Each line must be one JSON object.")

    def _csv_rows(self) -> Iterator[Placed]:
        csv.field_size_limit(sys.maxsize)
        reader = csv.DictReader(self._lines(), strict=True)
        try:
            for row in reader:
                if None in row or None in row.values():
                    wanted = len(self.columns or ())
                    raise OperatorError(
                        f"{self.file}: line {reader.line_num} does not have {wanted} fields, as line 1 does."
                    )
                yield Placed(reader.line_num, row)
        except csv.Error as error:
            raise OperatorError(f"{self.file}: the row after line {reader.line_num} is not CSV: {error}.") from error

    def _parquet_rows(self, only: Collection[str] | None) -> Iterator[Placed]:
        import pyarrow as pa

        columns = None if only is None else [name for name in self.columns or () if name in only]
        number = 0
        with self._parquet() as file:
            fields = [field for field in file.schema_arrow if columns is None or field.name in columns]
            plain = pa.schema([(field.name, _plain(field.type)) for field in fields])
            for batch in file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
                values = [_cast(batch.column(field.name), field.type).to_pylist() for field in plain]
                for row in zip(*values, strict=True):
                    number += 1
                    yield Placed(number, dict(zip(plain.names, row, strict=True)))


def _unambiguous(pairs: list[tuple[str, Any]]) -> Row:
    """Two readers of `{"text": "a", "text": "b"}` may see two texts, of which only one would be judged."""
    row = dict(pairs)
    if len(row) < len(pairs):
        twice = next(name for name, number in Counter(name for name, _ in pairs).items() if number > 1)
        raise ValueError(f"it has the name {twice!r} twice in one object")
    return row


def _plain(kind: "pa.DataType") -> "pa.DataType":
    """The type with which values of `kind` become values that JSON and CSV can hold: moments and decimals as text."""
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        return _plain(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
        return pa.string()
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_map(kind):
        return pa.map_(_plain(kind.key_type), _plain(kind.item_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_plain(kind.value_type))
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _plain(field.type)) for field in kind])
    return kind


def _cast(column: "pa.Array", plain: "pa.DataType") -> "pa.Array":
    import pyarrow as pa

    if column.type == plain:
        return column
    try:
        return column.cast(plain)
    except pa.ArrowException:
        if pa.types.is_timestamp(column.type):  # in a time zone that this machine does not know: as UTC
            return column.cast(pa.timestamp(column.type.unit)).cast(plain)
        return pa.array([None if value is None else str(value) for value in column], pa.string())


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
