"""The reader of large bodies accepts what the reader of small ones accepts, and does a bounded amount of work."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.api.http import body, json_reader
from server.api.http.json_reader import MAX_DEPTH, MAX_KEYS, MAX_TEXT_BYTES, MAX_VALUES, TooMuchText

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["😀é", '"\\', "\n\t", "\\u", ""]
)
documents = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
    max_leaves=20,
)
MARKS = [
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\\u",
    b"\\ud83d",
    b"\x00",
    b"\xff",
    b"\xc3",
    b"1",
    b"-",
    b".",
    b"e",
]


def outcome(read: Any, content: bytes) -> Any:
    """The document in a form that tells 1 from 1.0 and true, or `refused`."""
    try:
        return repr(read(content))
    except (ValueError, RecursionError):
        return "refused"


def slowly(content: bytes) -> Any:
    return json_reader.read(content, body._RULES)


@pytest.fixture(params=[3, 7, 65_536])
def slices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of some bytes, so that every boundary falls everywhere."""
    monkeypatch.setattr(json_reader, "SLICE", max(request.param, 6))


@pytest.mark.usefixtures("slices")
@given(document=documents, ascii_only=st.booleans(), indent=st.none() | st.integers(0, 3))
def test_what_is_json_is_read_alike(document: Any, ascii_only: bool, indent: int | None) -> None:
    content = json.dumps(document, ensure_ascii=ascii_only, indent=indent).encode()
    assert outcome(slowly, content) == outcome(body._read_at_once, content)


@pytest.mark.usefixtures("slices")
@given(
    document=documents,
    cuts=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 3), st.sampled_from(MARKS) | st.just(b"")), max_size=3),
)
@example(document="😀", cuts=[(7, 6, b"")])
def test_what_is_none_is_refused_alike(document: Any, cuts: list[tuple[int, int, bytes]]) -> None:
    content = json.dumps(document).encode()
    for at, drop, mark in cuts:
        content = content[:at] + mark + content[at + drop :]
    assert outcome(slowly, content) == outcome(body._read_at_once, content)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
        b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1),
        b"[" * 1_000_000,
        b"[" + b"1," * (MAX_VALUES - 2) + b"1]",
        b"[" + b"1," * MAX_VALUES + b"1]",
        b"{" + b",".join(b'"%d":1' % n for n in range(MAX_KEYS)) + b"}",
        b"{" + b",".join(b'"%d":1' % n for n in range(MAX_KEYS + 1)) + b"}",
        b'{"a":1,"a":1}',
        b"[NaN]",
        b"[Infinity]",
        b"1e999",
        b"18446744073709551616",
        b"18446744073709551615",
        b"1" * 100_000,
    ],
    ids=lambda content: content[:20].decode(),
)
def test_the_limits_are_the_same(content: bytes) -> None:
    assert outcome(slowly, content) == outcome(body._read_at_once, content)


def test_texts_are_bounded_and_pictures_are_not() -> None:
    long = b"a" * (MAX_TEXT_BYTES + 1)
    with pytest.raises(TooMuchText):
        slowly(b'{"input": "' + long + b'"}')
    with pytest.raises(TooMuchText):
        slowly(b'{"input": [' + b",".join([b'"' + b"a" * 1_000_000 + b'"'] * 17) + b"]}")
    picture = slowly(b'{"image_url": {"url": "' + long + b'"}}')
    assert len(picture["image_url"]["url"]) == len(long)


@pytest.mark.parametrize(
    "unit", [b'"a",', b'"\\u0041\\n",', b"[],", b"1.5,", b'{"a":1},', b'"' + b"b" * 500 + b'",'], ids=bytes.decode
)
def test_twice_the_body_takes_twice_the_steps(unit: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted: each step is a call of a regular expression or a slice that is decoded, of SLICE bytes at most."""
    steps: list[int] = []
    decoded = json_reader._decoded

    def counted(inside: bytes | bytearray) -> str:
        steps.append(len(inside))
        return decoded(inside)

    monkeypatch.setattr(json_reader, "_decoded", counted)
    numbers = []
    for times in (500, 1000):
        reader = json_reader._Reader(b"[" + unit * times + b"1]", body._RULES)
        reader.document()
        numbers.append((reader._values, len(steps)))
        assert all(size <= json_reader.SLICE for size in steps)
        steps.clear()
    (values, decodings), (more_values, more_decodings) = numbers
    assert more_values <= 2 * values
    assert more_decodings <= 2 * decodings
