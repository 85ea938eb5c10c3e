"""TOML files that operators write, read against a pydantic type; a mistake is reported by file and key."""

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from server.domain.errors import OperatorError

STRICT = ConfigDict(strict=True, extra="forbid", frozen=True)
"""For every type of a file's content: a misspelt key or a number in quotes must not pass for a setting."""

T = TypeVar("T")

_WORDS = {
    "missing": "the key is missing",
    "extra_forbidden": "there is no such key",
    "unexpected_keyword_argument": "there is no such key",
    "dataclass_type": "must be a table",
    "model_type": "must be a table",
    "dict_type": "must be a table",
}
"""Replaces pydantic's messages in terms of Python or JSON."""


def read_text(file: Path) -> str:
    """The content of `file`. Raises OperatorError if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise OperatorError(f"{file}: cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise OperatorError(f"{file}: is not UTF-8 text: {error}.") from error


def parse(file: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises OperatorError."""
    try:
        return tomllib.loads(read_text(file))
    except ValueError as error:
        raise OperatorError(f"{file}: is not valid TOML: {error}.") from error


def check(shape: TypeAdapter[T], table: Mapping[str, Any], file: Path, place: str = "") -> T:
    """`table` as `shape` says. Raises OperatorError with every mistake, by `file`, `place` in it, and key."""
    try:
        # As JSON, which has TOML's types: in strict mode, Python's lists and dicts are neither tuples nor dataclasses.
        return shape.validate_json(json.dumps(table, default=str))
    except ValidationError as error:
        faults = "; ".join(map(_fault, error.errors(include_url=False)))
        raise OperatorError(f"{file}: {place}{faults}.") from None


def _fault(fault: Mapping[str, Any]) -> str:
    key = ".".join(map(_quoted, fault["loc"]))
    kind, value = fault["type"], fault["input"]
    if kind == "value_error":
        return f"{key}: {fault['ctx']['error']}"
    words = _WORDS.get(kind, fault["msg"])
    return f"{key}: {words}, not {value!r}" if kind.endswith("_type") else f"{key}: {words}"


def _quoted(part: str | int) -> str:
    """A part of a key, as TOML writes it."""
    return str(part) if re.fullmatch(r"[A-Za-z0-9_-]+", str(part)) else json.dumps(part)
