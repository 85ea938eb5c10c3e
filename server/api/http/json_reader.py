"""JSON in small steps, for bodies that may be large.

Python's own parser does all of a body in one call, and holds the interpreter's lock meanwhile: 64 MB of tiny values or
of escapes stop every other thread for seconds. This reader counts while it reads, stops at the first limit, and decodes
a long text slice by slice. It accepts exactly what `json` accepts (tests/api/http/test_json_reader.py).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

MAX_VALUES = 50_000
"""Values in one body. An object or a list counts, and so does each value in it."""

MAX_KEYS = 1000
"""Keys in one object."""

MAX_DEPTH = 100
"""Levels of lists and objects."""

MAX_TEXT_BYTES = 16 * 2**20
"""Bytes of all texts in one body, except pictures."""

MAX_DIGITS = 1000
"""Digits of a number, before and after the point. No double needs as many."""

SLICE = 65_536
"""Bytes that one call reads: a few milliseconds, whatever they are."""

PICTURES = frozenset({"url", "image_url", "images"})
"""Keys of texts that may be pictures. Their bytes are limited by the body and by the decoder of images."""

_SPACE = re.compile(rb"[ \t\r\n]{0,%d}" % SLICE)
_INSIDE = re.compile(rb'(?:[^"\\\x00-\x1f]+|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*')
"""The inside of a string. It ends before a quotation mark, and before anything that a string must not hold."""

_LOW_SURROGATE = re.compile(rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]{0,%d})(?:\.[0-9]{1,%d})?(?:[eE][-+]?[0-9]{1,9})?" % (2 * (MAX_DIGITS,)))
_WORDS: dict[int, tuple[bytes, bool | None]] = {
    ord("t"): (b"true", True),
    ord("f"): (b"false", False),
    ord("n"): (b"null", None),
}
_QUOTE, _COLON, _COMMA, _OBJECT, _OBJECT_END, _LIST, _LIST_END = b'":,{}[]'


class Unreadable(ValueError):
    """JSON that parsers read differently, or cannot read, or that is too much. The message is for the caller."""


class TooMuchText(ValueError):
    """The texts are longer than MAX_TEXT_BYTES. `field` is the key at the top of the body that holds the last one."""

    def __init__(self, field: str | None) -> None:
        super().__init__("too much text")
        self.field = field


@dataclass(frozen=True, slots=True)
class Rules:
    """How numbers and objects are read. All of them raise ValueError for what has no single meaning."""

    whole: Callable[[str], int]
    fraction: Callable[[str], float]
    unique: Callable[[list[tuple[str, Any]]], dict[str, Any]]


def too_many_values() -> Unreadable:
    return Unreadable(f"it holds more than {MAX_VALUES} values")


def too_many_keys() -> Unreadable:
    return Unreadable(f"an object holds more than {MAX_KEYS} keys")


def too_deep() -> Unreadable:
    return Unreadable(f"lists and objects are nested more than {MAX_DEPTH} levels deep")


def read(body: bytes | bytearray, rules: Rules) -> Any:
    """The document in `body`. Raises TooMuchText and ValueError."""
    return _Reader(body, rules).document()


class _Reader:
    def __init__(self, body: bytes | bytearray, rules: Rules) -> None:
        self._body = body
        self._rules = rules
        self._at = 0
        self._values = 0
        self._text_bytes = 0
        self._field: str | None = None

    def document(self) -> Any:
        value = self._value(None, 0)
        self._skip_space()
        if self._at != len(self._body):
            raise ValueError
        return value

    def _value(self, key: str | None, depth: int) -> Any:
        """The next value. `key` is the nearest one above it, `depth` the number of lists and objects around it."""
        self._values += 1
        if self._values > MAX_VALUES:
            raise too_many_values()
        self._skip_space()
        sign = self._peek()
        if sign == _QUOTE:
            return self._string(may_be_picture=key in PICTURES)
        if sign in (_OBJECT, _LIST):
            if depth == MAX_DEPTH:
                raise too_deep()
            self._at += 1
            return self._object(depth + 1) if sign == _OBJECT else self._list(key, depth + 1)
        if sign in _WORDS:
            word, value = _WORDS[sign]
            if not self._body.startswith(word, self._at):
                raise ValueError
            self._at += len(word)
            return value
        return self._number()

    def _object(self, depth: int) -> dict[str, Any]:
        pairs: list[tuple[str, Any]] = []
        if self._takes(_OBJECT_END):
            return {}
        while True:
            if len(pairs) == MAX_KEYS:
                raise too_many_keys()
            self._skip_space()
            if self._peek() != _QUOTE:
                raise ValueError
            key = self._string()
            if depth == 1:
                self._field = key
            if not self._takes(_COLON):
                raise ValueError
            pairs.append((key, self._value(key, depth)))
            if not self._takes(_COMMA):
                break
        if not self._takes(_OBJECT_END):
            raise ValueError
        return self._rules.unique(pairs)

    def _list(self, key: str | None, depth: int) -> list[Any]:
        values: list[Any] = []
        if self._takes(_LIST_END):
            return values
        while True:
            values.append(self._value(key, depth))
            if not self._takes(_COMMA):
                break
        if not self._takes(_LIST_END):
            raise ValueError
        return values

    def _number(self) -> int | float:
        match = _NUMBER.match(self._body, self._at)
        if match is None:
            raise ValueError
        self._at = match.end()
        digits = match[0].decode()
        return self._rules.fraction(digits) if set(digits) & set(".eE") else self._rules.whole(digits)

    def _string(self, *, may_be_picture: bool = False) -> str:
        begin = self._at + 1
        pieces: list[str] = []
        while True:
            end = self._end_of_slice(begin)
            piece = _decoded(self._body[begin:end])
            if not (may_be_picture and piece.isascii()):
                self._text_bytes += end - begin
                if self._text_bytes > MAX_TEXT_BYTES:
                    raise TooMuchText(self._field)
            pieces.append(piece)
            if end < len(self._body) and self._body[end] == _QUOTE:
                self._at = end + 1
                return "".join(pieces) if len(pieces) > 1 else piece
            if end == begin:
                raise ValueError
            begin = end

    def _end_of_slice(self, begin: int) -> int:
        """The end of the string, or a place before it that divides neither a character nor a pair of surrogates."""
        match = _INSIDE.match(self._body, begin, begin + SLICE)
        assert match is not None  # it matches nothing, too
        end = match.end()
        if (low := _LOW_SURROGATE.match(self._body, end)) is not None:
            return low.end()
        for before in range(end, max(begin, end - 4), -1):
            if before == len(self._body) or self._body[before] & 0xC0 != 0x80:  # not within a character of UTF-8
                return before
        return end

    def _takes(self, sign: int) -> bool:
        """Whether `sign` comes next. If so, it is behind us."""
        self._skip_space()
        found = self._at < len(self._body) and self._body[self._at] == sign
        self._at += found
        return found

    def _peek(self) -> int:
        if self._at >= len(self._body):
            raise ValueError
        return self._body[self._at]

    def _skip_space(self) -> None:
        while True:
            match = _SPACE.match(self._body, self._at)
            assert match is not None  # it matches nothing, too
            self._at = match.end()
            if match.end() - match.start() < SLICE:
                return


def _decoded(inside: bytes | bytearray) -> str:
    """A slice of a string. Raises ValueError for invalid UTF-8 and lone surrogates."""
    text = inside.decode("utf-8")
    if "\\" not in text:
        return text
    decoded: str = scanstring(text + '"', 0, True)[0]
    decoded.encode("utf-8")  # a lone surrogate fails here
    return decoded
