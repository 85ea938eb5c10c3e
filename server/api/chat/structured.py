"""Answers as JSON: `response_format` and forced tools of a request, and the verdict in the schema that they ask for."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from server.api.chat.plans import Plan, Spellings, Told, plan_of
from server.api.chat.schemas import Budget, Unfit
from server.api.http.body import FIELD_NAME
from server.domain.aio import fresh
from server.domain.errors import InvalidRequest
from server.domain.taxonomy import Taxonomy
from server.domain.verdict import Verdict

ADVICE = (
    "A verdict fits an object with a boolean `flagged`, `unsafe` or `safe`, a string `verdict` (an enum of `safe` and"
    " `unsafe`), a list `categories` of strings, or a number `p_unsafe`. Make other properties optional or nullable."
    " docs/api-fields.md has the rules."
)
_FORCED = frozenset({"required", "any"})
_FREE = frozenset({"auto", "none"})


class Place(StrEnum):
    """The place of the object in the answer: the text, a call of a tool, or OpenAI's older form of such a call."""

    TEXT = "text"
    TOOL_CALL = "tool_call"
    FUNCTION_CALL = "function_call"


@dataclass(frozen=True, slots=True)
class Wanted:
    """An answer as an object of `schema`, None for any object. The schema stands in the request at `param`.

    `function` is the function to call with the object. `by_name` says that the request names it, and does not only ask
    for some call.
    """

    schema: Any
    param: str
    place: Place = Place.TEXT
    function: str = ""
    by_name: bool = True


@dataclass(frozen=True, slots=True)
class Layout:
    """How the answer to a request is laid out. `codes` maps the model's codes to the caller's."""

    wanted: Wanted
    plan: Plan
    codes: Mapping[str, str]

    def laid_out(self, verdict: Verdict) -> "Structured":
        """Raises InvalidRequest if the schema needs what this verdict does not have."""
        listed = tuple(self.codes.get(code, code) for code in verdict.categories)
        try:
            found = self.plan.instance(Told(verdict.unsafe, listed, verdict.p_unsafe))
        except Unfit as fault:
            raise _refusal(fault, self.wanted.param) from None
        return Structured(json.dumps(found, separators=(",", ":"), ensure_ascii=False), self.wanted)


@dataclass(frozen=True, slots=True)
class Structured:
    """The verdict as JSON text, and the place that it is wanted in."""

    text: str
    wanted: Wanted


def layout_of(wanted: Sequence[Wanted], taxonomy: Taxonomy, codes: Mapping[str, str]) -> Layout | None:
    """The layout of the first schema that can be honoured, None if none is wanted. Raises InvalidRequest."""
    spellings = _spellings(taxonomy, codes)
    first: InvalidRequest | None = None
    budget = Budget()
    for each in wanted:
        try:
            return Layout(each, plan_of(each.schema, spellings, budget), codes)
        except Unfit as fault:
            first = first or _refusal(fault, each.param)
    if first is not None:
        raise fresh(first)
    return None


def _spellings(taxonomy: Taxonomy, codes: Mapping[str, str]) -> Spellings:
    """The caller's code of each category, and the words by which an enum may name it instead."""
    return {
        codes.get(category.code, category.code): tuple(
            filter(None, (codes.get(category.code, category.code), category.slug, category.name))
        )
        for category in taxonomy.categories
    }


def _refusal(fault: Unfit, param: str) -> InvalidRequest:
    path = param
    for step in fault.path:
        if FIELD_NAME.fullmatch(step) is None:
            break
        path += f".{step}"
    return InvalidRequest(f"The schema cannot be honoured: {fault}. {ADVICE}", param=path)


# --- What a request wants ----------------------------------------------------------------------------------


def wanted_format(format_: Any, param: str) -> Wanted | None:
    """`response_format` of chat completions, or `text.format` of responses. Raises InvalidRequest."""
    kind = format_.get("type", "text") if isinstance(format_, dict) else None
    match kind:
        case "text":
            return None
        case "json_object":
            schema = format_.get("schema")
            return Wanted(schema, param if schema is None else f"{param}.schema")
        case "json_schema":
            # Chat completions put the schema one level deeper than responses.
            held, path = format_.get("json_schema"), f"{param}.json_schema"
            if held is None:
                held, path = format_, param
            if not isinstance(held, dict):
                raise InvalidRequest(f"Invalid value for '{path}': Input should be an object.", param=path)
            return Wanted(held.get("schema"), f"{path}.schema")
    raise InvalidRequest(
        f"Invalid value for '{param}.type': this server knows `text`, `json_object` and `json_schema`.",
        param=f"{param}.type",
    )


def wanted_call(choice: Any, tools: Sequence[Any], param: str = "tool_choice", list_: str = "tools") -> list[Wanted]:
    """The calls of which the request wants one, none if it does not force any. Raises InvalidRequest."""
    chosen, among = _chosen(choice, param)
    if chosen is None:
        return []
    functions = [
        Wanted(schema, path, Place.TOOL_CALL, name, bool(chosen)) for name, schema, path in _functions(tools, list_)
    ]
    found = [each for each in functions if each.function == chosen or (not chosen and among is None)]
    if among is not None:
        found = [each for each in functions if each.function in among]
    if not found:
        raise InvalidRequest(
            f"Invalid value for '{param}': there is no such function in '{list_}'. Only function tools can be called.",
            param=param,
        )
    return found


def _chosen(choice: Any, param: str) -> tuple[str | None, frozenset[str] | None]:
    """The function that must be called, "" for any, None for no call; and the names to choose from, None for all."""
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if not choice or (isinstance(kind, str) and kind in _FREE):
        return None, None
    if isinstance(kind, str) and kind in _FORCED:
        return "", None
    if isinstance(choice, dict):
        held = choice.get("function") if isinstance(choice.get("function"), dict) else choice
        name = held.get("name") if isinstance(held, dict) else None
        if kind in ("function", None) and isinstance(name, str) and name:
            return name, None
        if kind == "allowed_tools":
            return _allowed(choice)
    raise InvalidRequest(
        f"Invalid value for '{param}': send `none`, `auto`, `required`, or an object that names a function.",
        param=param,
    )


def _allowed(choice: dict[str, Any]) -> tuple[str | None, frozenset[str] | None]:
    held = choice.get("allowed_tools")
    allowed = held if isinstance(held, dict) else choice
    if allowed.get("mode") not in _FORCED:
        return None, None
    tools = allowed.get("tools")
    return "", frozenset(name for name, _, _ in _functions(tools if isinstance(tools, list) else [], ""))


def _functions(tools: Iterable[Any], list_: str) -> Iterator[tuple[str, Any, str]]:
    """The functions of a list: the name, the schema of the parameters, and where that stands.

    Chat completions put a function one level deeper than responses, and the deprecated `functions` say no type.
    """
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or tool.get("type", "function") != "function":
            continue
        inner = tool.get("function")
        function, path = (
            (inner, f"{list_}[{index}].function") if isinstance(inner, dict) else (tool, f"{list_}[{index}]")
        )
        name = function.get("name")
        if isinstance(name, str) and name:
            # A function without parameters could not be told the verdict.
            yield (
                name,
                function.get("parameters") or {"properties": {}, "additionalProperties": False},
                f"{path}.parameters",
            )
