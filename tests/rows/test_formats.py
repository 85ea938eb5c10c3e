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
from server.rows.writing import Kind, Table, write

ROWS: list[dict[str, Any]] = [
    {"id": "007", "text": 'He said "no",\nand left', "n": 1},
    {"id": "b", "text": "ü 😀", "n": None},
    {"id": "c", "text": "", "n": 3},
]


def made(file: Path, rows: list[dict[str, Any]]) -> Path:
    if ".parquet" in file.suffixes:
        pq.write_table(pa.Table.from_pylist(rows), file)
        if file.suffix == ".gz":
            file.write_bytes(gzip.compress(file.read_bytes()))
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
    "rows.parquet.gz",
    "a.b.csv",
]


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_read_from_every_format(tmp_path: Path, name: str) -> None:
    rows = read(made(tmp_path / name, ROWS))
    typed = ".csv" not in name
    assert rows == (ROWS if typed else [{k: "" if v is None else str(v) for k, v in row.items()} for row in ROWS])


VERDICT: dict[str, Any] = {"verdict": "unsafe", "flagged": True, "categories": ["S1", "S9"], "p_unsafe": 0.5}
KINDS: dict[str, Kind] = {"verdict": str, "flagged": bool, "categories": list, "p_unsafe": float}


def written(file: Path, out: Path) -> list[dict[str, Any]]:
    """The rows of `file` with a made-up verdict, written to `out` and read from it."""
    source = Source(file)
    write(out, out, Table(source, source.survey().columns, KINDS, lambda _: dict(VERDICT)))
    return read(out)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("out", [f"out.{name}" for name in NAMES])
def test_rows_are_written_in_every_format_and_read_again(tmp_path: Path, name: str, out: str) -> None:
    rows = written(made(tmp_path / name, ROWS), tmp_path / out)
    assert [row["text"] for row in rows] == [row["text"] for row in ROWS]
    assert [str(row["id"]) for row in rows] == ["007", "b", "c"]
    typed = ".csv" not in out
    assert [row["flagged"] for row in rows] == [True if typed else "true"] * 3
    assert [row["categories"] for row in rows] == [["S1", "S9"] if typed else "S1,S9"] * 3


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(".gz")])
def test_the_same_rows_are_the_same_bytes(tmp_path: Path, name: str) -> None:
    file = made(tmp_path / name, ROWS)
    ours, theirs = tmp_path / f"a.{name}", tmp_path / f"b.{name}"
    written(file, ours)
    written(file, theirs)
    assert ours.read_bytes() == theirs.read_bytes(), "gzip can hold the file's name"
    assert ours.read_bytes()[4:8] == bytes(4), "and the time"


MOMENT = pa.array([1, None], pa.timestamp("ns"))
TYPES = {
    "text": pa.array(["a", "b"]),
    "int32": pa.array([1, None], pa.int32()),
    "uint64": pa.array([2**64 - 1, 0], pa.uint64()),
    "half": pa.array([1, 2], pa.float32()).cast(pa.float16()),
    "nanoseconds": MOMENT,
    "zoned": MOMENT.cast(pa.timestamp("ns", "Nowhere/Town")),
    "year_200000": pa.array([1, 2**62], pa.timestamp("us")),
    "date": pa.array([1, 2**30], pa.date32()),
    "time": pa.array([1, 2], pa.time64("ns")),
    "duration": pa.array([1, 2], pa.duration("ns")),
    "decimal": pa.array([1, 2], pa.decimal128(30, 20)),
    "bytes": pa.array([b"\xff", None]),
    "large": pa.array(["a", "b"], pa.large_string()),
    "nothing": pa.nulls(2),
    "few": pa.array(["a", "b"]).dictionary_encode(),
    "tags": pa.array([["a", None], None]),
    "moments": pa.array([[1, None], None], pa.list_(pa.timestamp("ns"))),
    "fixed": pa.array([[1, 2], [3, 4]], pa.list_(pa.int8(), 2)),
    "structure": pa.array([{"at": 1, "price": 2}, None], pa.struct([("at", pa.timestamp("ns")), ("price", pa.int8())])),
    "map": pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.timestamp("ns"))),
}


def test_parquet_keeps_every_value_and_type_of_the_input(tmp_path: Path) -> None:
    fields = [pa.field(name, column.type, metadata={"about": name}) for name, column in TYPES.items()]
    table = pa.table(list(TYPES.values()), pa.schema(fields, {"pandas": "{}"}))
    file, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    pq.write_table(table, file)
    source = Source(file)
    write(out, out, Table(source, source.survey().columns, KINDS, lambda _: dict(VERDICT)))
    made = pq.read_table(out)
    assert made.select(list(TYPES)).equals(pq.read_table(file))
    assert made.schema.metadata == pq.read_schema(file).metadata
    assert made.column("verdict").to_pylist() == ["unsafe", "unsafe"]


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv"])
@pytest.mark.parametrize("column", TYPES)
def test_every_type_of_parquet_becomes_text(tmp_path: Path, name: str, column: str) -> None:
    pq.write_table(pa.table({"text": TYPES["text"], column: TYPES[column]}), tmp_path / "in.parquet")
    assert len(written(tmp_path / "in.parquet", tmp_path / name)) == 2


def test_a_json_line_stays_as_it_is(tmp_path: Path) -> None:
    lines = [
        r'{"text":"half \ud800, \u00fc","n":1.10,"big":123456789012345678901234567890,"e":1E400}',
        '{ "a" : { "b": [1,2] } , "text": "ü" }  ',
        "{}",
    ]
    (tmp_path / "in.jsonl").write_text("\r\n\n".join(lines))
    out = tmp_path / "out.jsonl"
    written(tmp_path / "in.jsonl", out)
    for before, after in zip(lines, out.read_text().splitlines(), strict=True):
        assert after.startswith(before.rstrip()[:-1].rstrip())
        assert json.loads(after) == json.loads(before) | VERDICT


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_half_a_surrogate_stays_an_escape(tmp_path: Path, name: str) -> None:
    (tmp_path / "in.jsonl").write_text(r'{"text": "half \ud800", "tags": ["\udfff"], "\ud800": 1}')
    (row,) = written(tmp_path / "in.jsonl", tmp_path / name)
    assert (row["text"], row["tags"], str(row[r"\ud800"])) == (r"half \ud800", r'["\udfff"]', "1")


def test_values_of_several_types_become_text(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"x": 1, "y": 1, "z": [1], "i": 2**60, "f": 0.5},
        {"x": "a", "y": 0.5, "z": {"b": None}, "i": 1, "f": 2**60},
        {"x": 2**80},
    ]
    made(tmp_path / "in.jsonl", rows)
    found = written(tmp_path / "in.jsonl", tmp_path / "out.parquet")
    assert [{name: row[name] for name in "xyzif"} for row in found] == [
        {"x": "1", "y": 1.0, "z": "[1]", "i": 2**60, "f": "0.5"},
        {"x": "a", "y": 0.5, "z": '{"b": null}', "i": 1, "f": str(2**60)},
        {"x": str(2**80), "y": None, "z": None, "i": None, "f": None},
    ]


def test_lists_of_the_input_can_be_told_apart_in_csv(tmp_path: Path) -> None:
    made(tmp_path / "in.jsonl", [{"text": "a", "tags": ["a,b", "c"]}])
    (row,) = written(tmp_path / "in.jsonl", tmp_path / "out.csv")
    assert json.loads(row["tags"]) == ["a,b", "c"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not JSON (Expecting value at column"),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', "line 2 is not a JSON object"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "line 2 is not in UTF-8: byte 0xff at position 11"),
        ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "is in UTF-16"),
        ("a.jsonl", b'{"text": "a", "text": "b"}\n', "has the name 'text' twice"),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000, "nested too deeply"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}", "line 1 is not JSON (Exceeds the limit"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 1000)[:-20], "damaged or cut off"),
        ("a.jsonl.gz", b'{"text": "a"}\n', "is not compressed with gzip, although its name says so"),
        ("a.csv.gz", b"", "is empty"),
        ("a.csv", b"id,text,id\n1,a,2\n", "several columns of the name 'id'"),
        ("a.csv", b"id,text\n1,a\n2,\xe9\n", "line 3 is not in UTF-8"),
        ("a.csv", b"id,text\n1,a\n2,b,c\n", "line 3 does not have 2 fields"),
        ("a.csv", b"id,text\n1\n", "line 2 does not have 2 fields"),
        ("a.csv", b'id,text\n1,"a"b\n', "the row after line 1 is not CSV"),
        ("a.parquet", b"PAR1 no", "is not a Parquet file"),
        ("a.txt", b"x", "must end in .jsonl"),
        ("a.parquet.gz", b"x", "is not compressed with gzip"),
        ("a.parquet.gz", gzip.compress(b"PAR1 no"), "is not a Parquet file"),
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
