"""POST /v1/moderations in two dialects: `input` is OpenAI's, with all thirteen categories; `messages` the Llama API's.

The native verdict stands beside either.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field

from server.api.content import StringOrStringsOrParts, WireModel, to_parts
from server.api.detail import verdict_detail
from server.api.examples import MODERATION_EXAMPLES, MODERATION_RESPONSES, json_request
from server.api.http.direct import DirectRoute, JSONReply
from server.api.http.ids import new_id
from server.api.llama import moderations as llama_api
from server.api.openai.categories import OpenAICategories
from server.api.policy import PolicyOptions, ScoresWanted
from server.api.service import Endpoint, Reply, Service
from server.domain.caller import Handling
from server.domain.conversation import Conversation, Part, TextPart
from server.domain.errors import ContextLengthExceeded, InvalidRequest, NothingToJudge
from server.domain.verdict import Verdict

router = APIRouter(prefix="/v1", tags=["moderation"], route_class=DirectRoute)

IMAGE_CATEGORIES = frozenset(
    {"self-harm", "self-harm/instructions", "self-harm/intent", "sexual", "violence", "violence/graphic"}
)
"""The categories that OpenAI's contract lets an image count for."""


Input = StringOrStringsOrParts
Messages = Annotated[list[llama_api.LlamaMessage], Field(min_length=1, fail_fast=True)]


def _absent_not_null(schema: dict[str, Any]) -> None:
    """What is not there is None in here; on the wire null is no value for it."""
    del schema["default"]
    (values,) = (branch for branch in schema.pop("anyOf") if branch != {"type": "null"})
    schema.update(values)


class ModerationRequest(WireModel):
    """Either `input` or `messages`."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["input"]}, {"required": ["messages"]}]})

    input: Input | None = Field(
        None, description="OpenAI's: a text, several, or one of parts.", json_schema_extra=_absent_not_null
    )
    messages: Messages | None = Field(
        None,
        description="The Llama API's: a conversation. Its last message is judged.",
        json_schema_extra=_absent_not_null,
    )
    model: str | None = None
    policy: PolicyOptions | None = None
    category_scores: ScoresWanted = None


async def moderate(service: Service, body: ModerationRequest, handling: Handling) -> Reply:
    """What the body asks with decides the dialect. Raises InvalidRequest for both forms, or for none."""
    if body.input is not None and body.messages is not None:
        raise InvalidRequest("'input' is OpenAI's, 'messages' the Llama API's: send one of them.", param="messages")
    if body.input is not None:
        return await _moderate_input(service, body, body.input, handling)
    if body.messages is not None:
        return await _moderate_messages(service, body, body.messages, handling)
    raise InvalidRequest("Missing required parameter: 'input' (or, as in the Llama API, 'messages').", param="input")


async def _moderate_messages(
    service: Service, body: ModerationRequest, messages: Sequence[llama_api.LlamaMessage], handling: Handling
) -> Reply:
    conversation = llama_api.conversation(messages)
    (verdict,) = await service.judge(
        [conversation], model=body.model, policy=body.policy, scores=body.category_scores, handling=handling
    )
    return Reply({"model": service.names.id, "results": [llama_api.result(verdict)]}, [verdict])


async def _moderate_input(service: Service, body: ModerationRequest, input_: Input, handling: Handling) -> Reply:
    conversations = _conversations(input_, service.settings.max_list)
    try:
        verdicts = await service.judge(
            conversations, model=body.model, policy=body.policy, scores=body.category_scores, handling=handling
        )
    except ContextLengthExceeded as error:
        raise error.at("input") from None
    unmapped = service.settings.category_of_unmapped
    results = [
        result(verdict, conversation, unmapped) for verdict, conversation in zip(verdicts, conversations, strict=True)
    ]
    return Reply({"id": new_id("modr-"), "model": service.names.id, "results": results}, verdicts)


ENDPOINT = Endpoint("/v1/moderations", ModerationRequest, moderate)


@router.post(
    "/moderations",
    summary="Judge text and images",
    openapi_extra=json_request(ModerationRequest, MODERATION_EXAMPLES),
    responses=MODERATION_RESPONSES,
)
async def create_moderation(request: Request) -> JSONReply:
    return await ENDPOINT.reply(request)


def _conversations(input_: Input, max_list: int) -> list[Conversation]:
    """One conversation for each result: a list of strings is judged one by one, parts are judged together."""
    if isinstance(input_, str):
        return [_conversation((TextPart(input_, "input"),), "input")]
    texts = [item for item in input_ if isinstance(item, str)]
    if len(texts) > max_list:
        raise InvalidRequest(f"A list may hold at most {max_list} items.", param="input")
    if texts:
        return [
            _conversation((TextPart(text, f"input[{index}]"),), f"input[{index}]") for index, text in enumerate(texts)
        ]
    parts = to_parts([item for item in input_ if not isinstance(item, str)], "input")
    return [_conversation(parts, "input")]


def _conversation(parts: tuple[Part, ...], param: str) -> Conversation:
    try:
        return Conversation.from_user(*parts)
    except NothingToJudge:
        raise NothingToJudge("There is neither text nor an image to judge.", param=param) from None


def result(verdict: Verdict, conversation: Conversation, unmapped: str | None) -> dict[str, Any]:
    """One entry of `results`; `unmapped` is the category of a flagged verdict whose codes set none."""
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


def _input_types(conversation: Conversation) -> list[str]:
    has_text = any(turn.texts for turn in conversation.turns)
    return [kind for kind, present in (("text", has_text), ("image", bool(conversation.images))) if present]
