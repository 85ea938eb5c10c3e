"""Rows in and out of every format: nothing is lost, nothing changes its place, and errors name the line."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from server.domain.errors import OperatorError
from server.rows.reading import Source
from server.rows.writing import write

ROWS: list[dict[str, Any]] = [
    {"id": "007", "text": 'He said "no",\nand left', "n": 1},
    {"id": "b", "text": "ü 😀", "n": None},
    {"id": "c", "text": "", "n": 3},
]


def made(file: Path, rows: list[dict[str, Any]]) -> Path:
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
        return file
    text = io.StringIO(newline="")
    if ".csv" in file.suffixes:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    else:
        text.write("".join(json.dumps(row) + "\n" for row in rows))
    content = text.getvalue().encode()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return file


def read(file: Path) -> list[dict[str, Any]]:
    return [placed.row for placed in Source(file)]


NAMES = [
    "rows.jsonl",
    "rows.ndjson",
    "rows.JSONL",
    "rows.csv",
    "rows.jsonl.gz",
    "rows.csv.gz",
    "rows.parquet",
    "a.b.csv",
]


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_read_from_every_format(tmp_path: Path, name: str) -> None:
    rows = read(made(tmp_path / name, ROWS))
    typed = ".csv" not in name
    assert rows == (ROWS if typed else [{k: "" if v is None else str(v) for k, v in row.items()} for row in ROWS])


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_written_in_every_format_and_read_again(tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    write(out, out, lambda: [dict(row) for row in ROWS], ["id", "text", "n"], None)
    assert [row["text"] for row in read(out)] == [row["text"] for row in ROWS]
    assert [str(row["id"]) for row in read(out)] == ["007", "b", "c"]


def test_parquet_keeps_the_types_of_the_input(tmp_path: Path) -> None:
    schema = pa.schema([("id", pa.int32()), ("at", pa.timestamp("us", "UTC")), ("tags", pa.list_(pa.string()))])
    table = pa.Table.from_pylist([{"id": 1, "at": 0, "tags": ["a"]}, {"id": 2, "at": None, "tags": None}], schema)
    file, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(table, file)
    source = Source(file)
    write(
        out, out, lambda: [{**placed.row, "verdict": "safe"} for placed in source], [*schema.names, "verdict"], schema
    )
    written = pq.read_table(out)
    assert written.select(schema.names).equals(table)
    assert written.column("verdict").to_pylist() == ["safe", "safe"]


def test_values_of_several_types_become_text(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"x": 1, "y": 1, "z": [1]}, {"x": "a", "y": 0.5, "z": {"b": None}}, {"x": 2**80}]
    out = tmp_path / "out.parquet"
    write(out, out, lambda: [dict(row) for row in rows], ["x", "y", "z"], None)
    assert pq.read_table(out).to_pylist() == [
        {"x": "1", "y": 1.0, "z": "[1]"},
        {"x": "a", "y": 0.5, "z": '{"b": null}'},
        {"x": str(2**80), "y": None, "z": None},
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not JSON (Expecting value at column"),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', "line 2 is not a JSON object"),
        ("a.jsonl", b'{"text": "\xff"}\n', "not in UTF-8"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 1000)[:-20], "damaged or cut off"),
        ("a.jsonl.gz", b'{"text": "a"}\n', "cannot be read"),
        ("a.csv", b"id,text\n1,a\n2,b,c\n", "line 3 does not have 2 fields"),
        ("a.csv", b"id,text\n1\n", "line 2 does not have 2 fields"),
        ("a.csv", b'id,text\n1,"a"b\n', "the row after line 1 is not CSV"),
        ("a.parquet", b"PAR1 no", "is not a Parquet file"),
        ("a.txt", b"x", "must end in .jsonl"),
        ("a.parquet.gz", b"x", "must end in .jsonl"),
        ("gz", b"x", "must end in .jsonl"),
        (".gz", b"x", "must end in .jsonl"),
    ],
)
def test_an_error_names_the_file_the_line_and_the_cause(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(OperatorError) as caught:
        read(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert said in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for name in NAMES:
        with pytest.raises(OperatorError, match=r"(cannot be read|is not a Parquet file)"):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_byte_order_mark_is_no_part_of_the_rows(tmp_path: Path, name: str) -> None:
    file = made(tmp_path / name, ROWS)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert next(iter(Source(file))).row["id"] == "007"
