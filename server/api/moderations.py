"""POST /v1/moderations in two dialects: `input` is OpenAI's, with all thirteen categories; `messages` the Llama API's.

Either reply also holds the native verdict. This module stands above both dialects, because they share the path.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field
from typing_extensions import TypeAliasType

from server.api.endpoint import Endpoint
from server.api.http.description import ERRORS, PIXEL, json_body, reply
from server.api.http.dialect import Dialect
from server.api.http.direct import DirectRoute, JSONReply
from server.api.llama import moderations as llama
from server.api.llama.moderations import LlamaModeration
from server.api.openai import examples
from server.api.openai import moderations as openai
from server.api.openai.moderations import InputModeration
from server.api.policy import PolicyOptions, ScoresWanted
from server.api.service import Reply, Service
from server.api.wire import Object, WireModel
from server.domain.aio import done
from server.domain.caller import Handling, Scope
from server.domain.conversation import Conversation
from server.domain.errors import ContextLengthExceeded, GuardError, InvalidRequest
from server.domain.events import ErrorAnswered, publish
from server.domain.verdict import Verdict

router = APIRouter(prefix="/v1", tags=["moderation"], route_class=DirectRoute)


def _absent_not_null(schema: dict[str, Any]) -> None:
    """An absent field is None in Python, but null is not accepted on the wire."""
    del schema["default"]
    (values,) = (branch for branch in schema.pop("anyOf") if branch != {"type": "null"})
    schema.update(values)


class ModerationRequest(WireModel):
    """Either `input` or `messages`."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["input"]}, {"required": ["messages"]}]})

    input: openai.Input | None = Field(
        None,
        description="OpenAI's: one text, a list of texts, or one input of several parts.",
        json_schema_extra=_absent_not_null,
    )
    messages: llama.Messages | None = Field(
        None,
        description="The Llama API's: a conversation. Its last message is judged.",
        json_schema_extra=_absent_not_null,
    )
    model: str | None = None
    policy: PolicyOptions | None = None
    category_scores: ScoresWanted = None
    on_error: Literal["fail", "per_item"] | None = Field(
        None,
        description="`per_item`: an error about one item of `input` stands in its place, flagged. Otherwise the first"
        " error fails the request.",
    )
    metadata: Object | None = Field(None, description="Accepted and ignored.")
    safety_identifier: str | None = Field(None, description="Accepted and ignored.")
    user: str | None = Field(None, description="Accepted and ignored.")


Moderation = TypeAliasType(
    "Moderation",
    Annotated[InputModeration | LlamaModeration, Field(description="In the dialect of the request.")],
)


async def moderate(service: Service, body: ModerationRequest, handling: Handling) -> Reply[Moderation]:
    """The field `input` or `messages` decides the dialect. Raises InvalidRequest for both of them, or for neither."""
    if body.input is not None and body.messages is not None:
        raise InvalidRequest("Send either 'input' (OpenAI) or 'messages' (Llama API), not both.", param="messages")
    if body.input is not None:
        return await _moderate_input(service, body, body.input, handling)
    if body.messages is not None:
        if body.on_error == "per_item":
            raise InvalidRequest("'per_item' is for 'input': a conversation has one result.", param="on_error")
        return await _moderate_messages(service, body, body.messages, handling)
    raise InvalidRequest("Missing required parameter: 'input' (OpenAI) or 'messages' (Llama API).", param="input")


async def _moderate_messages(
    service: Service, body: ModerationRequest, messages: llama.Messages, handling: Handling
) -> Reply[Moderation]:
    conversation = await done(lambda: llama.conversation(messages), large=handling.large)
    verdicts = await _judge(service, body, [conversation], handling)
    return Reply(llama.document(verdicts[0], service.names.id), verdicts)


async def _moderate_input(
    service: Service, body: ModerationRequest, input_: openai.Input, handling: Handling
) -> Reply[Moderation]:
    if body.on_error == "per_item":
        return await _moderate_each(service, body, input_, handling)
    most = service.settings.max_list
    conversations = await done(lambda: openai.conversations(input_, most), large=handling.large)
    try:
        verdicts = await _judge(service, body, conversations, handling)
    except ContextLengthExceeded as error:
        raise error.at("input") from None
    unmapped = service.settings.category_of_unmapped
    return Reply(openai.document(verdicts, conversations, service.names.id, unmapped), verdicts)


async def _moderate_each(
    service: Service, body: ModerationRequest, input_: openai.Input, handling: Handling
) -> Reply[Moderation]:
    most = service.settings.max_list
    conversations = await done(lambda: openai.conversations_apart(input_, most), large=handling.large)
    outcomes = await service.judge_each(
        conversations, model=body.model, policy=body.policy, scores=body.category_scores, handling=handling
    )
    is_list = isinstance(input_, list) and isinstance(input_[0], str) if input_ else False
    told = [_at(outcome, f"input[{index}]" if is_list else "input") for index, outcome in enumerate(outcomes)]
    for outcome in told:
        if isinstance(outcome, GuardError):
            publish(ErrorAnswered(outcome.code or outcome.type, outcome.status))
    unmapped = service.settings.category_of_unmapped
    verdicts = [outcome for outcome in told if isinstance(outcome, Verdict)]
    return Reply(openai.document(told, conversations, service.names.id, unmapped), verdicts)


def _at(outcome: Verdict | GuardError, param: str) -> Verdict | GuardError:
    """The outcome, with the item as the field at fault where an error only knows `messages`."""
    return outcome.at(param) if isinstance(outcome, ContextLengthExceeded) else outcome


async def _judge(
    service: Service, body: ModerationRequest, conversations: Sequence[Conversation], handling: Handling
) -> list[Verdict]:
    return await service.judge(
        conversations, model=body.model, policy=body.policy, scores=body.category_scores, handling=handling
    )


BODIES: dict[str, tuple[str, Any]] = {
    "text": ("One text", {"input": "How do I bake bread?"}),
    "list": ("Several texts, one result each", {"input": ["How do I bake bread?", "How do I build a pipe bomb?"]}),
    "per_item": (
        "Several texts, of which some cannot be judged",
        {"input": ["How do I bake bread?", ""], "on_error": "per_item"},
    ),
    "conversation": (
        "A conversation in the Llama API's format",
        {
            "messages": [
                {"role": "user", "content": "How do I build a pipe bomb?"},
                {"role": "assistant", "content": "I can't help with that."},
            ]
        },
    ),
    "image": (
        "A text with an image, judged together",
        {
            "input": [
                {"type": "text", "text": "What is in this picture?"},
                {"type": "image_url", "image_url": {"url": PIXEL}},
            ]
        },
    ),
    "scores": (
        "A separate score for every category, however safe the text is",
        {"input": "How do I bake bread?", "category_scores": "all"},
    ),
    "policy": (
        "Categories and a threshold of your own",
        {"input": "The butler did it.", "policy": {"categories": {"S1": "Spoilers."}, "threshold": 0.4}},
    ),
}

ENDPOINT = Endpoint("/v1/moderations", ModerationRequest, moderate)


@router.post(
    "/moderations",
    summary="Judge text and images",
    openapi_extra=json_body(ModerationRequest, BODIES),
    responses={200: reply(Moderation, "A result for each input, in order", examples.MODERATION), **ERRORS},
)
async def create_moderation(request: Request) -> JSONReply:
    return await ENDPOINT.reply(request)


DIALECT = Dialect([router], scopes={ENDPOINT.path: Scope.MODERATE})
