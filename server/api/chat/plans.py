"""A verdict as a JSON object of a caller's schema: which property says what, or why no verdict fits the schema.

Only clear names are filled. What a plan makes is held to the schema for every verdict that could come, before anything
is judged: so an answer obeys the schema, or there is an error and no verdict is paid for.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.api.chat.schemas import Budget, Reader, Schema, Unfit, branches_of, validator_of, words_in

Spellings = Mapping[str, Sequence[str]]
"""The codes that a verdict may list, and the words that may stand for each, the likeliest first."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a verdict says. `p_unsafe` is 0 to 1, or None if the backend reports no probabilities."""

    unsafe: bool
    codes: tuple[str, ...] = ()
    p_unsafe: float | None = None


Say = Callable[[Told], Any]

UNSAFE_FLAGS = frozenset({"flagged", "is_flagged", "is_unsafe", "unsafe"})
SAFE_FLAGS = frozenset({"is_safe", "safe"})
VERDICTS = frozenset({"safety", "safety_label", "safety_verdict", "verdict"})
"""Texts under these names are `safe` or `unsafe`."""

CHOICES = VERDICTS | frozenset(
    {"answer", "assessment", "class", "classification", "decision", "judgement", "judgment", "label", "outcome"}
    | {"output", "prediction", "response", "result", "status", "value"}
)
"""Enums under these names are, if they list `safe` and `unsafe`."""

CATEGORIES = frozenset(
    {"categories", "category_codes", "codes", "flagged_categories", "hazard_categories", "unsafe_categories"}
    | {"violated_categories", "violated_codes"}
)
PROBABILITIES = frozenset(
    {"p_unsafe", "prob_unsafe", "probability_unsafe", "unsafe_prob", "unsafe_probability", "unsafe_score"}
    | {"confidence_unsafe", "unsafe_confidence"}
)
SCORES = frozenset({"score"})
"""They hold P(unsafe) too, but only beside a verdict: alone, a high score could be read as safe."""

_CAPITALS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[- ]")


@dataclass(frozen=True, slots=True)
class Fill:
    """One property that a verdict fills. `optional` and `nullable` say how it goes without a probability."""

    name: str
    say: Say
    holds_verdict: bool
    of_probability: bool = False
    optional: bool = False
    nullable: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """The properties that a verdict fills, and those that are null in every answer."""

    fills: tuple[Fill, ...]
    nulls: tuple[str, ...] = ()

    def instance(self, told: Told) -> dict[str, Any]:
        """The object for a verdict. Raises Unfit if it needs a probability that is not there."""
        found: dict[str, Any] = dict.fromkeys(self.nulls)
        for fill in self.fills:
            if fill.of_probability and told.p_unsafe is None:
                if fill.nullable:
                    found[fill.name] = None
                elif not fill.optional:
                    raise Unfit("it needs a probability, and this verdict has none", "properties", fill.name)
            else:
                found[fill.name] = fill.say(told)
        return found


def _unsafe(told: Told) -> bool:
    return told.unsafe


def _safe(told: Told) -> bool:
    return not told.unsafe


def _word(told: Told) -> str:
    return "unsafe" if told.unsafe else "safe"


def _codes(told: Told) -> list[str]:
    return list(told.codes)


def _p_unsafe(told: Told) -> float | None:
    return told.p_unsafe


FREE = Plan(
    (
        Fill("verdict", _word, holds_verdict=True),
        Fill("categories", _codes, holds_verdict=False),
        Fill("p_unsafe", _p_unsafe, holds_verdict=True, of_probability=True, nullable=True),
    )
)
"""The answer if any object will do."""


def plan_of(schema: Any, spellings: Spellings, budget: Budget) -> Plan:
    """How a verdict with codes of `spellings` becomes an object of `schema`. Raises Unfit."""
    if schema is None:
        return FREE
    if not isinstance(schema, dict):
        raise Unfit("it is not an object")
    reader = Reader(schema, budget)
    described = reader.object(schema)
    properties, needed = described.get("properties") or {}, described.get("required") or []
    if not isinstance(properties, dict) or not isinstance(needed, list):
        raise Unfit("its properties are not an object, or those that are required not a list")
    required = dict.fromkeys(name for name in needed if isinstance(name, str))
    if not properties:
        return _free(described, required)
    fills = [
        fill
        for name, each in properties.items()
        if (fill := _fill(name, each, reader, spellings, optional=name not in required)) is not None
    ]
    if not any(fill.holds_verdict for fill in fills):
        raise Unfit("none of its properties can hold a verdict")
    filled = {fill.name for fill in fills}
    nulls = tuple(name for name in required if name not in filled)
    for name in nulls:
        if name not in properties or not _takes_null(properties[name], reader):
            raise Unfit("it requires a property that a verdict cannot fill", "properties", name)
    return Plan(tuple(fills), nulls)


def _free(described: dict[str, Any], required: Iterable[str]) -> Plan:
    """The plan for an object of any properties."""
    others = set(required) - {fill.name for fill in FREE.fills}
    if others or described.get("additionalProperties", True) not in (True, {}):
        raise Unfit("none of its properties can hold a verdict")
    return FREE


def _fill(name: str, written: Any, reader: Reader, spellings: Spellings, *, optional: bool) -> Fill | None:
    """How a verdict fills a property. None if its name says nothing clear, or a value would not obey its schema.

    Raises Unfit for a property that is not optional and whose schema cannot be read.
    """
    plain = _CAPITALS.sub("_", name).lower()
    if plain not in UNSAFE_FLAGS | SAFE_FLAGS | CHOICES | CATEGORIES | PROBABILITIES | SCORES:
        return None
    try:
        schema = reader.read(written)
        valid = validator_of(schema).is_valid
        say = _say(plain, schema, spellings)
    except Unfit as fault:
        if optional:
            return None
        raise Unfit(str(fault), "properties", name) from None
    if say is None or not all(valid(say(told)) for told in _outcomes(spellings)):
        return None
    return Fill(
        name,
        say,
        holds_verdict=plain not in CATEGORIES | SCORES,
        of_probability=plain in PROBABILITIES | SCORES,
        optional=optional,
        nullable=bool(valid(None)),
    )


def _say(name: str, schema: Schema, spellings: Spellings) -> Say | None:
    if name in UNSAFE_FLAGS:
        return _unsafe
    if name in SAFE_FLAGS:
        return _safe
    if name in PROBABILITIES:
        return _p_unsafe
    if name in SCORES:
        tops = [
            branch[key] for branch in branches_of(schema) for key in ("maximum", "exclusiveMaximum") if key in branch
        ]
        return _p_unsafe if all(top == 1 for top in tops) else None
    if name in CATEGORIES:
        return _say_codes(schema, spellings)
    words = words_in(schema)
    if not words:
        return _word if name in VERDICTS else None
    spelt = {told: [word for word in words if word.casefold() == told] for told in ("safe", "unsafe")}
    if any(len(found) != 1 for found in spelt.values()):
        return None
    return lambda told: spelt[_word(told)][0]


def _say_codes(schema: Schema, spellings: Spellings) -> Say | None:
    """Codes as they are, or as an enum of the items spells them. Each code must have a word there."""
    words = {word for branch in branches_of(schema) for word in words_in(branch.get("items", True))}
    if not words:
        return _codes
    spelt = {code: next((word for word in likely if word in words), None) for code, likely in spellings.items()}
    if None in spelt.values():
        raise Unfit("an enum of categories leaves out one that a verdict may list")
    return lambda told: [spelt[code] for code in told.codes]


def _outcomes(spellings: Spellings) -> Iterator[Told]:
    """Verdicts that stand for all that could come."""
    codes = tuple(spellings)
    for p_unsafe in (0.0, 0.3):
        yield Told(False, (), p_unsafe)
    for listed in ((), *((code,) for code in codes), codes):
        yield Told(True, listed, 1.0 if listed else 0.7)


def _takes_null(written: Any, reader: Reader) -> bool:
    try:
        return bool(validator_of(reader.read(written)).is_valid(None))
    except Unfit:
        return False
