"""Rows with their verdicts into JSON Lines, CSV and Parquet.

What the input holds goes into an output of the same format as it is: the very text of a JSON line, and the very values
and types of Parquet. So nothing is lost in a value that Python would read in another way.
"""

import base64
import csv
import gzip
import io
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from server.domain.errors import OperatorError
from server.rows.formats import Format, format_of
from server.rows.reading import BATCH_ROWS, Row, Source

if TYPE_CHECKING:
    import pyarrow as pa

GROUP_BYTES = 16 * 2**20
GROUP_ROWS = 128 * 1024
"""A row group of a Parquet file is written when it is so large. One for each batch would be slow to read."""

Added = Callable[[int], Row]
"""The columns that are added to a row, by the row's number from 0."""

Kind = type[bool] | type[float] | type[str] | type[list[str]]
"""What an added column holds; a list is one of texts."""


@dataclass(frozen=True, slots=True)
class Table:
    """What is written: the rows of `source` with columns `inputs`, each with the columns of `added`.

    `kinds` are the added columns of every format. In JSON Lines, `added` may return more.
    """

    source: Source
    inputs: Sequence[str]
    kinds: Mapping[str, Kind]
    added: Added

    def rows(self) -> Iterator[Row]:
        for number, placed in enumerate(self.source):
            yield placed.row | self.added(number)


def write(part: Path, out: Path, table: Table) -> None:
    """Write `table` to `part` in the format of `out`'s name, and wait for the disk. Raises OperatorError."""
    form = format_of(out)
    try:
        if form.kind == "parquet":
            _write_parquet(part, form, table)
        else:
            # A surrogate without its other half has no UTF-8. It stays the escape that it was in the input.
            with _sink(part, form) as sink:
                (_write_json if form.kind == "jsonl" else _write_csv)(sink, table)
        with part.open("rb") as written:
            os.fsync(written.fileno())
    except OSError as error:
        raise OperatorError(f"{out}: cannot be written: {error.strerror or error}.") from error


# --- Text ------------------------------------------------------------------------------------------------


@contextmanager
def _sink(part: Path, form: Format) -> Iterator[IO[str]]:
    if not form.packed:
        with part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as sink:
            yield sink
        return
    with (
        _packed(part) as packed,
        io.TextIOWrapper(cast("IO[bytes]", packed), encoding="utf-8", errors="backslashreplace", newline="") as sink,
    ):
        yield sink


@contextmanager
def _packed(part: Path) -> Iterator[gzip.GzipFile]:
    # Without a name and a time in its head, the same rows are the same bytes.
    with part.open("wb") as stream, gzip.GzipFile("", "wb", 6, stream, 0) as packed:
        yield packed


def _write_json(sink: IO[str], table: Table) -> None:
    for number, placed in enumerate(table.source):
        row = placed.raw or _as_json(placed.row)
        added = _as_json(table.added(number))
        sink.write(f"{row[:-1].rstrip()}{', ' if placed.row else ''}{added[1:]}\n")


def _write_csv(sink: IO[str], table: Table) -> None:
    writer = csv.writer(sink)
    writer.writerow([*table.inputs, *table.kinds])
    for number, placed in enumerate(table.source):
        added = table.added(number)
        joined = [",".join(value) if isinstance(value := added[name], list) else value for name in table.kinds]
        writer.writerow(map(_cell, [*map(placed.row.get, table.inputs), *joined]))


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return _as_json(value) if isinstance(value, list | dict) else _plain_text(value)


def _plain_text(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_plain_text)


# --- Parquet ---------------------------------------------------------------------------------------------


def _write_parquet(part: Path, form: Format, table: Table) -> None:
    if not form.packed:
        _write_groups(part, table)
        return
    # In a file that has no name: a kill leaves nothing of it.
    with tempfile.TemporaryFile(dir=part.parent) as plain:
        _write_groups(plain, table)
        plain.seek(0)
        with _packed(part) as packed:
            shutil.copyfileobj(plain, cast("IO[bytes]", packed))


def _write_groups(sink: Path | IO[bytes], table: Table) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    added = pa.schema([(name, _arrow(kind)) for name, kind in table.kinds.items()])
    inputs = table.source.schema if table.source.format.kind == "parquet" else pa.schema(_inferred(table))
    schema = pa.schema([*inputs, *added], inputs.metadata)
    batches = _as_they_are(table, added) if table.source.format.kind == "parquet" else _made(table, inputs, added)
    group, rows, size = [], 0, 0
    with pq.ParquetWriter(sink, schema) as writer:
        for columns in batches:
            group.append(pa.RecordBatch.from_arrays(columns, schema=schema))
            rows, size = rows + group[-1].num_rows, size + group[-1].nbytes
            if rows >= GROUP_ROWS or size >= GROUP_BYTES:
                writer.write_table(pa.Table.from_batches(group))
                group, rows, size = [], 0, 0
        if group:
            writer.write_table(pa.Table.from_batches(group))


def _as_they_are(table: Table, added: "pa.Schema") -> "Iterator[list[pa.Array]]":
    """The columns of a Parquet file, untouched, and those that are added."""
    number = 0
    for batch in table.source.batches():
        ours = [table.added(each) for each in range(number, number + batch.num_rows)]
        number += batch.num_rows
        yield [*batch.columns, *_arrays(ours, table.kinds, added)]


def _made(table: Table, inputs: "pa.Schema", added: "pa.Schema") -> "Iterator[list[pa.Array]]":
    numbered = enumerate(table.source)
    texts = [name for name, field in zip(table.inputs, inputs, strict=True) if field.type == "string"]
    while some := list(itertools.islice(numbered, BATCH_ROWS)):
        rows = [placed.row for _, placed in some]
        for row in rows:
            for name in texts:
                if (value := row.get(name)) is not None:
                    row[name] = _as_text(value)
        ours = [table.added(number) for number, _ in some]
        yield [*_arrays(rows, table.inputs, inputs), *_arrays(ours, table.kinds, added)]


def _arrays(rows: Sequence[Row], names: Iterable[str], schema: "pa.Schema") -> "list[pa.Array]":
    import pyarrow as pa

    return [pa.array([row.get(name) for row in rows], field.type) for name, field in zip(names, schema, strict=True)]


def _as_text(value: Any) -> str:
    text = value if isinstance(value, str) else _as_json(value)
    return text.encode("utf-8", "backslashreplace").decode()


def _inferred(table: Table) -> "list[tuple[str, pa.DataType]]":
    """The type of each column of the input: that of its values if they have one, otherwise text, with JSON in it."""
    import pyarrow as pa

    seen: dict[str, set[str]] = {name: set() for name in table.inputs}
    if table.source.format.kind == "jsonl":  # in CSV everything is text
        for placed in table.source:
            for name, value in placed.row.items():
                if value is not None:
                    seen[name].add(_type_name(value))
    types = (
        ({"bool"}, pa.bool_()),
        ({"int", "long"}, pa.int64()),
        ({"int", "float"}, pa.float64()),
        ({"texts"}, pa.list_(pa.string())),
    )
    return [
        (_as_text(name), next((type_ for names, type_ in types if found and found <= names), pa.string()))
        for name, found in seen.items()
    ]


def _type_name(value: Any) -> str:
    if isinstance(value, list):
        return "texts" if all(isinstance(item, str) and _is_utf_8(item) for item in value) else "json"
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**53) <= value <= 2**53:
        # As a float it would be another number.
        return "long" if -(2**63) <= value < 2**63 else "json"
    return type(value).__name__ if isinstance(value, bool | int | float | str) else "json"


def _is_utf_8(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _arrow(kind: Kind) -> "pa.DataType":
    import pyarrow as pa

    types: dict[Kind, pa.DataType] = {bool: pa.bool_(), float: pa.float64(), str: pa.string()}
    return types.get(kind, pa.list_(pa.string()))
