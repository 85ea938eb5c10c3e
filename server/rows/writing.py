"""Rows into JSON Lines, CSV and Parquet: all of them or none. The file appears under its name once it is complete."""

import csv
import gzip
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from server.domain.errors import OperatorError
from server.rows.formats import format_of
from server.rows.reading import BATCH_ROWS, Row

if TYPE_CHECKING:
    import pyarrow as pa

Rows = Callable[[], Iterable[Row]]
"""The rows, from the first one on at each call."""


def write(part: Path, out: Path, rows: Rows, columns: Sequence[str], schema: "pa.Schema | None") -> None:
    """Write `rows` to `part` in the format of `out`'s name, and wait for the disk. Raises OperatorError.

    `columns` are all columns. `schema` has types of some of them, which Parquet keeps.
    """
    form = format_of(out)
    try:
        if form.kind == "parquet":
            _write_parquet(part, rows, columns, schema)
        else:
            with (
                gzip.open(part, "wt", encoding="utf-8", newline="")
                if form.packed
                else part.open("w", encoding="utf-8", newline="") as sink
            ):
                (_write_json if form.kind == "jsonl" else _write_csv)(cast("IO[str]", sink), rows, columns)
        with part.open("rb") as written:
            os.fsync(written.fileno())
    except OSError as error:
        raise OperatorError(f"{out}: cannot be written: {error.strerror or error}.") from error


def _write_json(sink: IO[str], rows: Rows, _: Sequence[str]) -> None:
    for row in rows():
        sink.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def _write_csv(sink: IO[str], rows: Rows, columns: Sequence[str]) -> None:
    writer = csv.writer(sink)
    writer.writerow(columns)
    for row in rows():
        writer.writerow([_cell(row.get(column)) for column in columns])


def _cell(value: Any) -> Any:
    """Codes are joined by commas, and everything else that is no single value becomes JSON."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ",".join(value)
    if isinstance(value, list | dict):
        return _as_json(value)
    if isinstance(value, bool):
        return str(value).lower()
    return value


def _write_parquet(part: Path, rows: Rows, columns: Sequence[str], schema: "pa.Schema | None") -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    known = {} if schema is None else {field.name: field.type for field in schema}
    types = known | _types_of(rows, [column for column in columns if column not in known])
    whole = pa.schema([(column, types[column]) for column in columns])
    texts = {column for column, type_ in types.items() if column not in known and pa.types.is_string(type_)}
    with pq.ParquetWriter(part, whole) as writer:
        for some in _in_batches(rows()):
            for row in some:
                for column in texts:
                    if (value := row.get(column)) is not None and not isinstance(value, str):
                        row[column] = _as_json(value)
            writer.write_batch(pa.RecordBatch.from_pylist(some, schema=whole))


def _types_of(rows: Rows, columns: Sequence[str]) -> dict[str, "pa.DataType"]:
    """The type of each column: that of its values if they have one, otherwise text, with JSON in it."""
    import pyarrow as pa

    seen: dict[str, set[str]] = {column: set() for column in columns}
    if columns:
        for row in rows():
            for column in columns:
                if (value := row.get(column)) is not None:
                    seen[column].add(_type_name(value))
    names = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "texts": pa.list_(pa.string())}
    types = {}
    for column, found in seen.items():
        name = "float" if found == {"int", "float"} else next(iter(found)) if len(found) == 1 else "str"
        types[column] = names.get(name, pa.string())
    return types


def _type_name(value: Any) -> str:
    if isinstance(value, list):
        return "texts" if all(isinstance(item, str) for item in value) else "json"
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return "json"
    return type(value).__name__ if isinstance(value, bool | int | float | str) else "json"


def _in_batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    remaining = iter(rows)
    while some := list(itertools.islice(remaining, BATCH_ROWS)):
        yield some


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
