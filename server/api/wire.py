"""The base of all request bodies: one rule, at every level, for what a body holds beyond what the server reads.

A field that holds nothing is dropped. A field that is named as bookkeeping is ignored, as far as it holds no words
(`Ignored`). Every other unknown field is refused. So a client's empty fields do no harm, and nothing that was said
hides in a field that nobody reads.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import orjson
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

IDENTIFIER = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""A plain name of a speaker or a function. Any other `name` is judged as a text."""

OPAQUE = re.compile(r"[A-Za-z0-9+/=_.:-]*")
"""A token of any length that a program made: an id, a signature, encrypted data. Anything else is judged as a text."""

EXACT = 2**53
"""Whole numbers up to this size are exact as floats, so `1024.0` is 1024. A larger one is refused."""

Object = dict[str, Any]


# --- What holds nothing ------------------------------------------------------------------------------------


def holds_nothing(value: Any) -> bool:
    """Whether `value` is null, an empty text, list or object, or a list or object that only holds such values.

    `false` and 0 are values: they hold something.
    """
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            left += item.values()
        elif isinstance(item, list):
            left += item
        elif item is not None and item != "":
            return False
    return True


# --- Bookkeeping -------------------------------------------------------------------------------------------

LABELS = frozenset({"format", "mode", "object", "provider", "role", "status", "ttl", "type"})
"""Keys in bookkeeping of unknown shape whose values are ignored while they are identifiers."""

TOKENS = frozenset(
    {"call_id", "encrypted_content", "id", "item_id", "response_id", "signature", "thought_signature"}
    | {"thought_signatures", "tool_call_id"}
)
"""Keys in bookkeeping of unknown shape whose values are ignored while they are tokens that a program made."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """Marks a field that is ignored. Texts in it are ignored only if `harmless` matches them whole.

    Without `harmless` the key that a text stands under decides: LABELS and TOKENS may hold such texts. Any other text,
    and a key that is no identifier, is words. The owner of the field judges these (`WireModel.asides`).
    """

    harmless: re.Pattern[str] | None = None

    def words(self, value: Any) -> Iterator[str]:
        """The texts in `value` that are not harmless, in order."""
        left: list[tuple[re.Pattern[str] | None, Any]] = [(self.harmless, value)]
        while left:
            harmless, item = left.pop()
            if isinstance(item, str):
                if item and (harmless is None or harmless.fullmatch(item) is None):
                    yield item
            elif isinstance(item, list):
                left += [(harmless, each) for each in reversed(item)]
            elif isinstance(item, dict):
                yield from (key for key in item if IDENTIFIER.fullmatch(key) is None)
                left += [(self._harmless_under(key), item[key]) for key in reversed(item)]

    def _harmless_under(self, key: str) -> re.Pattern[str] | None:
        if self.harmless is not None:
            return self.harmless
        return OPAQUE if key in TOKENS else IDENTIFIER if key in LABELS else None


Label = Annotated[str | None, Ignored(IDENTIFIER)]
Token = Annotated[str | None, Ignored(OPAQUE)]
Id = Annotated[str | int | None, Ignored(OPAQUE)]
Options = Annotated[Any, Ignored(IDENTIFIER)]
"""Settings for another server: numbers, and strings that are identifiers."""

Bookkeeping = Annotated[Any, Ignored()]
"""A program's notes, of any shape."""


MAX_REPEATED = 2048
"""The most characters of a text that is compared with what a client read from it. Thousands of long ones would block
the event loop."""


def repeats(text: str | None, parsed: Any) -> bool:
    """Whether `parsed` is what the JSON in `text` says. Clients send both back."""
    if text is None or len(text) > MAX_REPEATED:
        return False
    try:
        return bool(orjson.loads(text) == parsed)
    except orjson.JSONDecodeError:
        return False


# --- The base ----------------------------------------------------------------------------------------------


class WireModel(BaseModel):
    """Base of all request bodies. Types are not coerced, except for a whole number that is spelt `1024.0`.

    A field that may be left out may also be null. It may be empty too: if its type does not take the empty value, that
    counts as left out. Some languages cannot tell an empty object from an empty list, so `[]` is taken for `{}`.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    ignored_fields: ClassVar[MappingProxyType[str, Ignored]] = MappingProxyType({})
    """The fields that are marked as ignored."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        marks = {
            name: [m for m in field.metadata if isinstance(m, Ignored)] for name, field in cls.model_fields.items()
        }
        cls.ignored_fields = MappingProxyType({name: found[0] for name, found in marks.items() if found})

    @model_validator(mode="before")
    @classmethod
    def _drop_what_holds_nothing(cls, given: Any) -> Any:
        if isinstance(given, list) and not given:
            return {}
        if not isinstance(given, dict):
            return given
        known = cls.model_fields
        for name, value in given.items():  # no generator: every object of every body comes here
            if not value or name not in known or type(value) is float:
                break
        else:
            return given
        kept = {}
        for name, value in given.items():
            if name not in known:
                if not holds_nothing(value):
                    kept[name] = value
            elif value is None or value in ("", [], {}):
                kept |= _empty(cls, name, value)
            elif type(value) is float and value.is_integer() and abs(value) <= EXACT and _is_whole(cls, name):
                kept[name] = int(value)
            else:
                kept[name] = value
        return kept

    def asides(self) -> Iterator[tuple[str, str]]:
        """Words in fields that are ignored otherwise: the name of each field, and the words in it as one text."""
        for name, mark in self.ignored_fields.items():
            value = getattr(self, name)
            if value and (words := list(mark.words(value))):
                yield name, "\n".join(words)


class Noted(WireModel):
    """A message, a part or a call, with the notes that clients and routers keep in it."""

    id: Id = None
    index: Options = None
    cache_control: Options = None
    prompt_cache_breakpoint: Options = None
    extra_content: Bookkeeping = None
    provider_specific_fields: Bookkeeping = None


def _empty(model: type[WireModel], name: str, value: Any) -> dict[str, Any]:
    """The field `name` as it counts with an empty value: with that value, with `{}`, or left out."""
    required = model.model_fields[name].is_required()
    if value is None:
        return {name: value} if required else {}
    if _takes(model, name, value):
        return {name: value}
    if value == [] and _takes(model, name, {}):
        return {name: {}}
    return {name: value} if required else {}


def _is_whole(model: type[WireModel], name: str) -> bool:
    """Whether a field takes whole numbers and no others."""
    return _takes(model, name, 1) and not _takes(model, name, 1.5)


def _takes(model: type[WireModel], name: str, value: Any) -> bool:
    return _takes_json(model, name, json.dumps(value))


_OUT_OF_BOUNDS = frozenset({"too_short", "greater_than", "greater_than_equal", "less_than", "less_than_equal"})


@cache
def _takes_json(model: type[WireModel], name: str, value: str) -> bool:
    """Whether a value, given as JSON, is of the type of a field. It may be out of the field's bounds."""
    field = model.model_fields[name]
    kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    try:
        TypeAdapter(kind).validate_python(json.loads(value), strict=True)
    except ValidationError as error:
        return all(fault["type"] in _OUT_OF_BOUNDS for fault in error.errors())
    return True
