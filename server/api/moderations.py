"""POST /v1/moderations in OpenAI's dialect: every form of `input`, all thirteen categories, and the native verdict."""

import uuid
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from server.api.content import StringOrStringsOrParts, WireModel, to_parts
from server.api.detail import verdict_detail
from server.api.examples import MODERATION_EXAMPLES, MODERATION_RESPONSES, json_request
from server.api.policy import PolicyOptions
from server.api.service import Endpoint, Reply, Service
from server.caller import Handling
from server.conversation import Conversation, Part, TextPart
from server.errors import ContextLengthExceeded, InvalidRequest, NothingToJudge
from server.profile import OPENAI_CATEGORIES
from server.verdict import Verdict

router = APIRouter(prefix="/v1", tags=["moderation"])

IMAGE_CATEGORIES = frozenset(
    {"self-harm", "self-harm/instructions", "self-harm/intent", "sexual", "violence", "violence/graphic"}
)
"""The categories that OpenAI's contract lets an image count for."""

CATEGORIES = tuple(sorted(OPENAI_CATEGORIES))


class ModerationRequest(WireModel):
    input: StringOrStringsOrParts
    model: str | None = None
    policy: PolicyOptions | None = None


async def moderate(service: Service, body: ModerationRequest, handling: Handling) -> Reply:
    conversations = _conversations(body, service.settings.max_list)
    try:
        verdicts = await service.judge(conversations, model=body.model, policy=body.policy, handling=handling)
    except ContextLengthExceeded as error:
        error.param = "input"
        raise
    results = [result(verdict, conversation) for verdict, conversation in zip(verdicts, conversations, strict=True)]
    return Reply({"id": f"modr-{uuid.uuid4().hex}", "model": service.names.id, "results": results}, verdicts)


ENDPOINT = Endpoint("/v1/moderations", ModerationRequest, moderate)


@router.post(
    "/moderations",
    summary="Judge text and images",
    openapi_extra=json_request(ModerationRequest, MODERATION_EXAMPLES),
    responses=MODERATION_RESPONSES,
)
async def create_moderation(request: Request) -> JSONResponse:
    return await ENDPOINT.reply(request)


def _conversations(body: ModerationRequest, max_list: int) -> list[Conversation]:
    """One conversation for each result: a list of strings is judged one by one, parts are judged together."""
    if isinstance(body.input, str):
        return [_conversation((TextPart(body.input),), "input")]
    texts = [item for item in body.input if isinstance(item, str)]
    if len(texts) > max_list:
        raise InvalidRequest(f"A list may hold at most {max_list} items.", param="input")
    if texts:
        return [_conversation((TextPart(text),), f"input[{index}]") for index, text in enumerate(texts)]
    parts = to_parts([item for item in body.input if not isinstance(item, str)], "input")
    return [_conversation(parts, "input")]


def _conversation(parts: tuple[Part, ...], param: str) -> Conversation:
    try:
        return Conversation.from_user(*parts)
    except NothingToJudge:
        raise NothingToJudge("There is neither text nor an image to judge.", param=param) from None


def result(verdict: Verdict, conversation: Conversation) -> dict[str, Any]:
    """One entry of `results`. A listed code sets its categories; a category's score is its likeliest code's."""
    taxonomy = verdict.completion.taxonomy
    flags, scores = dict.fromkeys(CATEGORIES, False), dict.fromkeys(CATEGORIES, 0.0)
    for hazard in taxonomy.categories:
        score = _wire_score(verdict, hazard.code)
        listed = hazard.code in verdict.categories
        for category in hazard.openai:
            flags[category] = flags[category] or listed
            scores[category] = max(scores[category], score)
        for other, category in hazard.openai_with:
            flags[category] = flags[category] or (listed and other in verdict.categories)
            scores[category] = max(scores[category], min(score, _wire_score(verdict, other)))
    inputs = _input_types(conversation)
    return {
        "flagged": verdict.unsafe,
        "categories": flags,
        "category_scores": scores,
        "category_applied_input_types": {
            category: [kind for kind in inputs if kind == "text" or category in IMAGE_CATEGORIES] if true else []
            for category, true in flags.items()
        },
        "guard": verdict_detail(verdict),
    }


def _wire_score(verdict: Verdict, code: str) -> float:
    """The native score; without probabilities 1 for a listed code, because the field cannot be null on the wire."""
    scores: Mapping[str, float] | None = verdict.category_scores
    if scores is None:
        return float(code in verdict.categories)
    return scores.get(code, 0.0)


def _input_types(conversation: Conversation) -> list[str]:
    has_text = any(text.strip() for turn in conversation.turns for text in turn.texts)
    return [kind for kind, present in (("text", has_text), ("image", bool(conversation.images))) if present]
