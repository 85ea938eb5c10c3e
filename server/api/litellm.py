"""POST /beta/litellm_basic_guardrail_api: the door through which a LiteLLM proxy asks about a request or a response.

LiteLLM takes the answer NONE for "all that I sent was checked". So all of it is judged: each turn of the conversation
as the last one of what came before it, and every text, image and tool call that is in no turn. What cannot be judged is
an HTTP error, by which LiteLLM blocks unless its operator told it to go on.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator

from server.api.content import WireModel
from server.api.detail import verdict_detail
from server.api.direct import DirectRoute, JSONReply
from server.api.examples import LITELLM_EXAMPLES, LITELLM_RESPONSES, json_request
from server.api.policy import PolicyOptions
from server.api.service import Endpoint, Reply, Service
from server.caller import Handling
from server.conversation import ROLES, Conversation, ImagePart, Message, Part, Role, TextPart
from server.errors import InvalidRequest, NothingToJudge
from server.verdict import Verdict

router = APIRouter(tags=["LiteLLM"], route_class=DirectRoute)

METADATA_PREFIXES = ("litellm_", "request_", "user_api_key_")
"""How LiteLLM begins the names of what it tells about a call; a newer one may tell more."""

TEXT_KEYS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
    "tool_reference": "tool_name",
}
"""Kinds of content parts that are words, and the key that holds them."""

IMAGE_KINDS = frozenset({"image_url", "input_image"})

UNREADABLE_KINDS = frozenset({"redacted_thinking"})
"""Encrypted: neither the model behind LiteLLM's user nor this one can read it."""

NO_WORDS = frozenset({"role", "name", "tool_call_id", "id", "index", "type", "status", "cache_control", "signature"})
"""Keys of a message, and of what it holds, that say nothing of their own."""

ENCRYPTED = frozenset({"data", "encrypted_content"})


class AdditionalParameters(BaseModel):
    """What the proxy's operator configured; others than `policy` are other guardrails'."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    policy: PolicyOptions | None = None


class GuardrailRequest(WireModel):
    input_type: Literal["request", "response"]
    texts: list[str] | None = Field(None, fail_fast=True)
    images: list[str] | None = Field(None, fail_fast=True, description="data: URLs, or base64 alone.")
    structured_messages: list[dict[str, Any]] | None = Field(
        None, fail_fast=True, description="The conversation, in the format of chat completions."
    )
    tool_calls: list[dict[str, Any]] | None = Field(None, fail_fast=True)
    tools: list[Any] | None = Field(None, description="Definitions of tools. They are not judged.")
    additional_provider_specific_params: AdditionalParameters | None = None
    model: str | None = Field(None, description="The guarded model, whatever it is called. Ignored.")

    @model_validator(mode="before")
    @classmethod
    def _ignore_metadata(cls, body: dict[str, Any]) -> dict[str, Any]:
        """Versions of LiteLLM tell more or less. What could hold content is refused until it is known."""
        return {
            name: value
            for name, value in body.items()
            if name in cls.model_fields
            or not (name.startswith(METADATA_PREFIXES) or value in (None, [], {}, "") or isinstance(value, int | float))
        }


async def guard(service: Service, body: GuardrailRequest, handling: Handling) -> Reply:
    conversations = list(_conversations(body))
    if not conversations:
        raise NothingToJudge("There is neither text nor an image to judge.", param="texts")
    if len(conversations) > service.settings.max_list:
        raise InvalidRequest(f"A request may hold at most {service.settings.max_list} texts.", param="texts")
    parameters = body.additional_provider_specific_params
    policy = None if parameters is None else parameters.policy
    verdicts = await service.judge(conversations, model=None, policy=policy, handling=handling)
    unsafe = [verdict for verdict in verdicts if verdict.unsafe]
    document: dict[str, Any] = {"action": "BLOCKED" if unsafe else "NONE"}
    if unsafe:
        document["blocked_reason"] = _reason(unsafe)
    return Reply({**document, "guard": [verdict_detail(verdict) for verdict in verdicts]}, verdicts)


ENDPOINT = Endpoint("/beta/litellm_basic_guardrail_api", GuardrailRequest, guard)


@router.post(
    ENDPOINT.path,
    summary="Judge what a LiteLLM proxy is about to send or to answer",
    openapi_extra=json_request(GuardrailRequest, LITELLM_EXAMPLES),
    responses=LITELLM_RESPONSES,
)
async def guard_litellm(request: Request) -> JSONReply:
    return await ENDPOINT.reply(request)


def _reason(unsafe: Sequence[Verdict]) -> str:
    """All listed categories by code and name; those of a request's own policy by their code alone."""
    named: dict[str, str] = {}
    for verdict in unsafe:
        taxonomy = verdict.completion.taxonomy
        for code in verdict.categories:
            named[code] = code if taxonomy.own else f"{code} {taxonomy[code].name}"
    listed = ", ".join(named[code] for code in sorted(named, key=lambda code: int(code[1:])))
    return f"Unsafe content: {listed}." if listed else "Unsafe content."


# --- What is judged --------------------------------------------------------------------------------------


def _conversations(body: GuardrailRequest) -> Iterator[Conversation]:
    """Every turn as the last one of its conversation, then whatever stands in none."""
    messages = [_message(message, index) for index, message in enumerate(body.structured_messages or ())]
    yield from _each_turn(messages)
    # The same words as an answer to something else were judged as something else.
    known = messages if body.input_type == "request" else _last_answer(messages)
    said = {part.text for message in known for part in message.parts if isinstance(part, TextPart)}
    shown = {_payload(part.url) for message in known for part in message.parts if isinstance(part, ImagePart)}
    texts = [TextPart(text) for text in body.texts or () if text not in said]
    images = [
        ImagePart(_url(image), f"images[{index}]")
        for index, image in enumerate(body.images or ())
        if _payload(image) not in shown
    ]
    calls = [TextPart(text) for text in map(_call, body.tool_calls or ()) if text not in said]
    speaker = "user" if body.input_type == "request" else "assistant"
    # What an assistant answers is judged as an answer to what was asked.
    context = [] if body.input_type == "request" else messages
    if images:
        yield from _last_turn([*context, Message(speaker, (*texts, *images))])
    else:
        for text in texts:
            yield from _last_turn([*context, Message(speaker, (text,))])
    yield from _last_turn([*context, Message("assistant", tuple(calls))])


def _last_answer(messages: Sequence[Message]) -> Sequence[Message]:
    """What the assistant says at the end, which `_each_turn` has judged as the answer that it is."""
    return list(takewhile(lambda message: ROLES[message.role] is Role.AGENT, reversed(messages)))


def _each_turn(messages: Sequence[Message]) -> Iterator[Conversation]:
    kept = [message for message in messages if _says_something(message.parts)]
    if not kept:
        return
    turns = Conversation.from_messages(kept).turns
    for end, turn in enumerate(turns, 1):
        if _says_something(turn.parts):
            yield Conversation(turns[:end])


def _last_turn(messages: Sequence[Message]) -> Iterator[Conversation]:
    if _says_something(messages[-1].parts):
        yield Conversation.from_messages(messages)


def _says_something(parts: Iterable[Part]) -> bool:
    return any(isinstance(part, ImagePart) or part.text.strip() for part in parts)


# --- Messages as LiteLLM passes them on ------------------------------------------------------------------


def _message(message: dict[str, Any], index: int) -> Message:
    """A message of any provider that LiteLLM speaks to. Raises InvalidRequest for what cannot be judged."""
    path = f"structured_messages[{index}]"
    role, parts = message.get("role"), list[Part]()
    if role not in ROLES:
        raise InvalidRequest(f"Unknown role. Known roles are: {', '.join(ROLES)}.", param=f"{path}.role")
    for key, value in message.items():
        match key, value:
            case "content", list():
                for position, part in enumerate(value):
                    parts += _part(part, f"{path}.content[{position}]")
            case "tool_calls", list():
                parts += [TextPart(_call(call)) for call in value]
            case "function_call", dict():
                parts.append(TextPart(_call({"function": value})))
            case _ if key not in NO_WORDS:
                parts += [TextPart(words) for words in _words(value)]
    return Message(role, tuple(parts))


def _part(part: Any, path: str) -> Iterator[Part]:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise InvalidRequest("A content part is an object with a type.", param=path)
    if kind in TEXT_KEYS and isinstance(words := part.get(TEXT_KEYS[kind]), str):
        yield TextPart(words)
        beside = {key: value for key, value in part.items() if key != TEXT_KEYS[kind]}
        yield from map(TextPart, _words(beside))
    elif kind in IMAGE_KINDS:
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        if not isinstance(url, str):
            raise InvalidRequest("An image part needs its URL.", param=f"{path}.image_url")
        yield ImagePart(_url(url), f"{path}.image_url")
    elif kind not in UNREADABLE_KINDS:
        raise InvalidRequest("A content part of this kind cannot be judged.", param=path)


def _call(call: Any) -> str:
    """A call of a tool as chat completions judge it; one of another shape with all that it says."""
    function = call.get("function") if isinstance(call, dict) else None
    if isinstance(function, dict) and isinstance(arguments := function.get("arguments"), str):
        return f"{function.get('name') or ''}({arguments})"
    return json.dumps(call, ensure_ascii=False)


def _words(value: Any) -> Iterator[str]:
    """Every text within a value of a field that is not known, such as a model's thoughts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _words(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key not in NO_WORDS | ENCRYPTED:
                yield from _words(item)


def _url(image: str) -> str:
    """LiteLLM passes some providers' images on as base64 alone."""
    return image if ":" in image[:16] else f"data:;base64,{image}"


def _payload(url: str) -> str:
    return url.rpartition(";base64,")[2]
