"""Moderations in OpenAI's format: `input`, and results that have all thirteen categories."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema

from server.api.detail import Guard, verdict_detail
from server.api.http.errors import ErrorDetail, error_body
from server.api.http.ids import new_id
from server.api.http.shapes import Closed
from server.api.messages import StringOrStringsOrParts, to_parts
from server.api.openai.categories import CATEGORIES, OpenAICategories
from server.domain.aio import fresh
from server.domain.conversation import Conversation, Part, TextPart
from server.domain.errors import GuardError, InvalidRequest, NothingToJudge
from server.domain.verdict import Verdict

IMAGE_CATEGORIES = frozenset(
    {"self-harm", "self-harm/instructions", "self-harm/intent", "sexual", "violence", "violence/graphic"}
)
"""The categories that an image can set, by OpenAI's contract."""

Input = StringOrStringsOrParts
InputType = Literal["text", "image"]


def _by_category(value: dict[str, Any]) -> WithJsonSchema:
    """An object that has each of OpenAI's categories and nothing else."""
    return WithJsonSchema(
        {
            "type": "object",
            "properties": dict.fromkeys(CATEGORIES, value),
            "required": list(CATEGORIES),
            "additionalProperties": False,
        }
    )


_SCORE: dict[str, Any] = {"type": "number", "minimum": 0, "maximum": 1}
_KINDS: dict[str, Any] = {"type": "array", "items": {"enum": ["text", "image"]}}


class ModerationResult(Closed):
    flagged: bool
    categories: Annotated[Mapping[str, bool], _by_category({"type": "boolean"})]
    category_scores: Annotated[Mapping[str, float], _by_category(_SCORE)]
    category_applied_input_types: Annotated[Mapping[str, list[InputType]], _by_category(_KINDS)]
    guard: Guard


class FailedResult(Closed):
    """An item that was not judged, in a request with `on_error` `per_item`. It is flagged, so that nobody passes it."""

    flagged: Literal[True]
    categories: Annotated[Mapping[str, bool], _by_category({"type": "boolean"})]
    category_scores: Annotated[Mapping[str, float], _by_category(_SCORE)]
    category_applied_input_types: Annotated[Mapping[str, list[InputType]], _by_category(_KINDS)]
    error: ErrorDetail


class InputModeration(Closed):
    """OpenAI's reply to `input`: a result for each conversation."""

    id: str
    model: str
    results: Annotated[list[ModerationResult | FailedResult], Field(min_length=1)]


def conversations(input_: Input, max_list: int) -> list[Conversation]:
    """One conversation for each result. Raises InvalidRequest for the first that cannot be judged."""
    found = conversations_apart(input_, max_list)
    for one in found:
        if isinstance(one, GuardError):
            raise fresh(one)
    return [one for one in found if isinstance(one, Conversation)]


def conversations_apart(input_: Input, max_list: int) -> list[Conversation | GuardError]:
    """One conversation for each result, or the error that it cannot be judged.

    Strings of a list are judged one by one, parts are judged together.
    """
    if isinstance(input_, str):
        return [_conversation((TextPart(input_, "input"),), "input")]
    texts = [item for item in input_ if isinstance(item, str)]
    if len(texts) > max_list:
        raise InvalidRequest(
            f"The list has more than {max_list} items. Send fewer. The operator sets the limit with GUARD_MAX_LIST.",
            param="input",
        )
    if texts:
        return [
            _conversation((TextPart(text, f"input[{index}]"),), f"input[{index}]") for index, text in enumerate(texts)
        ]
    parts = to_parts([item for item in input_ if not isinstance(item, str)], "input")
    return [_conversation(parts, "input")]


def _conversation(parts: tuple[Part, ...], param: str) -> Conversation | GuardError:
    try:
        return Conversation.from_user(*parts)
    except NothingToJudge:
        return NothingToJudge("There is nothing to judge. Send a text or an image.", param=param)


def document(
    outcomes: Sequence[Verdict | GuardError],
    conversations: Sequence[Conversation | GuardError],
    model: str,
    unmapped: str | None,
) -> InputModeration:
    """`unmapped` is the category of a flagged verdict whose codes set none."""
    results = [
        _result_or_error(outcome, conversation, unmapped)
        for outcome, conversation in zip(outcomes, conversations, strict=True)
    ]
    return {"id": new_id("modr-"), "model": model, "results": results}


def _result_or_error(
    outcome: Verdict | GuardError, conversation: Conversation | GuardError, unmapped: str | None
) -> ModerationResult | FailedResult:
    if isinstance(outcome, GuardError):
        return _failed(outcome, unmapped)
    assert isinstance(conversation, Conversation)  # it was judged
    return _result(outcome, conversation, unmapped)


def _failed(error: GuardError, unmapped: str | None) -> FailedResult:
    """Flagged, with the category and the highest score of a flagged verdict whose codes set none."""
    return {
        "flagged": True,
        "categories": {category: category == unmapped for category in CATEGORIES},
        "category_scores": {category: float(category == unmapped) for category in CATEGORIES},
        "category_applied_input_types": {category: [] for category in CATEGORIES},
        "error": error_body(error)["error"],
    }


def _result(verdict: Verdict, conversation: Conversation, unmapped: str | None) -> ModerationResult:
    found = OpenAICategories.of(verdict, unmapped)
    inputs = _input_types(conversation) if verdict.unsafe else []
    return {
        "flagged": verdict.unsafe,
        "categories": found.flags,
        "category_scores": found.scores,
        "category_applied_input_types": {
            category: [kind for kind in inputs if kind == "text" or category in IMAGE_CATEGORIES] if true else []
            for category, true in found.flags.items()
        },
        "guard": verdict_detail(verdict),
    }


def _input_types(conversation: Conversation) -> list[InputType]:
    has_text = any(turn.texts for turn in conversation.turns)
    present: list[tuple[InputType, bool]] = [("text", has_text), ("image", bool(conversation.images))]
    return [kind for kind, is_there in present if is_there]
