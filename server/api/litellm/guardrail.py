"""POST /beta/litellm_basic_guardrail_api: the door through which a LiteLLM proxy asks about a request or a response.

LiteLLM takes the answer NONE for "all that I sent was checked". So all of it is judged: each turn of the conversation
as the last one of what came before it, and every text, image and tool call that is in no turn. More of them than one
request may ask about are joined, never left out. What cannot be judged is an HTTP error, by which LiteLLM blocks unless
its operator told it to go on.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from server.api.content import IDENTIFIER, OPAQUE, WireModel
from server.api.detail import verdict_detail
from server.api.examples import LITELLM_EXAMPLES, LITELLM_RESPONSES, json_request
from server.api.http.direct import DirectRoute, JSONReply
from server.api.policy import PolicyOptions, ScoresWanted
from server.api.service import Endpoint, Reply, Service
from server.domain.caller import Handling
from server.domain.conversation import (
    ROLES,
    Conversation,
    ImagePart,
    Message,
    Part,
    Role,
    TextPart,
    Turn,
    says_something,
)
from server.domain.errors import InvalidRequest, NothingToJudge
from server.domain.verdict import Verdict
from server.moderation.passes import MAX_PASSES

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

ENCRYPTED = {"redacted_thinking": "data", "reasoning.encrypted": "data"}
"""Kinds of objects that neither the guarded model's users nor this model can read, and the key of what is hidden."""

LABELS = frozenset({"role", "name", "type", "status", "detail", "ttl"})
"""Keys whose values say nothing of their own while each is one identifier."""

TOKENS = frozenset({"id", "call_id", "tool_call_id", "signature", "thought_signature", "encrypted_content", "format"})
"""Keys whose values say nothing while each is a token that a program made."""

FIELDS = frozenset(
    {"annotations", "content", "function_call", "images", "name", "provider_specific_fields", "reasoning"}
    | {"reasoning_content", "reasoning_items", "refusal", "thinking_blocks", "tool_call_id", "tool_calls"}
)
"""Fields of a message that a path may name. Any other key is the caller's own words, which no answer repeats."""

MAX_LEVELS = 100
"""Lists and objects within each other."""

LONG_BODY = 65_536
"""Characters of a body that is read on the event loop."""


class AdditionalParameters(BaseModel):
    """What the proxy's operator configured; fields with other names are other guardrails'."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    policy: PolicyOptions | None = None
    category_scores: ScoresWanted = None


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

    @field_validator("structured_messages", "tool_calls")
    @classmethod
    def _refuse_what_is_too_deep(cls, value: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        if _extent(value)[0] > MAX_LEVELS:
            raise ValueError(f"its lists and objects are nested more than {MAX_LEVELS} levels deep")
        return value

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
    most = service.settings.max_list
    _, characters = _extent([body.texts, body.images, body.structured_messages, body.tool_calls])
    if characters > LONG_BODY:
        conversations = await asyncio.to_thread(_conversations, body, most)
    else:
        conversations = _conversations(body, most)
    own = body.additional_provider_specific_params or AdditionalParameters()
    verdicts = await service.judge(
        conversations, model=None, policy=own.policy, scores=own.category_scores, handling=handling
    )
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


_SPEAKERS = {Role.USER: "user", Role.AGENT: "assistant"}

RECENT_TURNS = 16
"""Turns that are judged one by one in a request that holds more than MAX_PASSES texts."""

GROUPS = (MAX_PASSES - RECENT_TURNS) // 4
"""Messages into which a speaker's earlier turns are joined then, and as many for what stands in no turn."""


def _conversations(body: GuardrailRequest, most: int) -> list[Conversation]:
    """What is judged: no more than MAX_PASSES conversations hold all of it.

    Raises NothingToJudge, and InvalidRequest for more than `most` turns and texts.
    """
    messages = [_message(message, index) for index, message in enumerate(body.structured_messages or ())]
    kept = [message for message in messages if _says_something(message.parts)]
    turns = Conversation.from_messages(kept).turns if kept else ()
    others = _in_no_turn(body, messages, turns)
    if not turns and not others:
        raise NothingToJudge("There is neither text nor an image to judge.", param="texts")
    if len(turns) + len(others) > most:
        raise InvalidRequest(f"A request may hold at most {most} texts.", param="texts")
    first, joined = 0, list[Message]()
    if len(turns) + len(others) > MAX_PASSES:
        first = max(0, len(turns) - RECENT_TURNS)
        said = [Message(_SPEAKERS[turn.role], _asked_about(turn)) for turn in turns[:first] if turn.parts]
        joined = [group for speaker in _SPEAKERS.values() for group in _in_groups(said, speaker)]
        others = [group for speaker in _SPEAKERS.values() for group in _in_groups(others, speaker)]
    # What an assistant answers is judged as an answer to what was asked.
    context = turns if body.input_type == "response" else ()
    conversations = [Conversation.from_messages([message]) for message in joined]
    # Each turn is judged itself, so an operator's that follows the model's need not have that one judged once more.
    conversations += [
        Conversation((*turns[:end], Turn(turns[end].role, _asked_about(turns[end]))))
        for end in range(first, len(turns))
        if turns[end].parts
    ]
    conversations += [_answer(context, message) for message in others]
    return conversations


def _answer(context: tuple[Turn, ...], message: Message) -> Conversation:
    """`message` after `context`, whose texts are not read again: there may be many answers to it."""
    (*empty, turn) = Conversation.from_messages([message]).turns
    if not context:
        return Conversation((*empty, turn))
    if context[-1].role is turn.role:
        return Conversation((*context[:-1], Turn(turn.role, (*context[-1].parts, *turn.parts))))
    return Conversation((*context, turn))


def _asked_about(turn: Turn) -> tuple[Part, ...]:
    """The parts of a turn. An operator's that stand alone are no context, and must not become it among others."""
    alone = all(part.operator for part in turn.parts)
    return tuple(replace(part, operator=False) for part in turn.parts) if alone else turn.parts


def _in_groups(messages: Sequence[Message], speaker: str) -> Iterator[Message]:
    """What `speaker` says in `messages`, neighbours together, as at most GROUPS messages of about the same length."""
    said = [message.parts for message in messages if message.role == speaker]
    size = -(-len(said) // GROUPS)
    for start in range(0, len(said), size or 1):
        yield Message(speaker, tuple(part for parts in said[start : start + size] for part in parts))


def _in_no_turn(body: GuardrailRequest, messages: Sequence[Message], turns: Sequence[Turn]) -> list[Message]:
    """What is judged beside the `turns` into which `messages` were folded."""
    # The same words as an answer to something else were judged as something else.
    known = messages if body.input_type == "request" else _last_answer(messages)
    by_agent = {part.text for one in known if ROLES[one.role] is Role.AGENT for part in _texts(one.parts)}
    asked, told = by_agent, Counter[str]()
    if body.input_type == "request":
        asked = {part.text for turn in turns for part in _texts(turn.asked)}
        told = Counter(part.text for turn in turns for part in _texts(turn.parts) if part.operator)
    texts = list[TextPart]()
    for index, text in enumerate(body.texts or ()):
        # An operator's words are context. Those that are said more often than the operator did are not all his.
        if text in told and text not in asked and told[text] > 0:
            told[text] -= 1
        elif text not in asked:
            texts.append(TextPart(text, f"texts[{index}]"))
    shown = {_payload(part.url) for message in known for part in message.parts if isinstance(part, ImagePart)}
    images = [
        ImagePart(_url(image), f"images[{index}]")
        for index, image in enumerate(body.images or ())
        if _payload(image) not in shown
    ]
    calls = [part for index, call in enumerate(body.tool_calls or ()) for part in _call(call, f"tool_calls[{index}]")]
    speaker = "user" if body.input_type == "request" else "assistant"
    found = [Message(speaker, (*texts, *images))] if images else [Message(speaker, (text,)) for text in texts]
    found.append(Message("assistant", tuple(call for call in calls if call.text not in by_agent)))
    return [message for message in found if _says_something(message.parts)]


def _texts(parts: Iterable[Part]) -> Iterator[TextPart]:
    return (part for part in parts if isinstance(part, TextPart))


def _last_answer(messages: Sequence[Message]) -> Sequence[Message]:
    """What the assistant says at the end, which is judged as the answer that it is."""
    return list(takewhile(lambda message: ROLES[message.role] is Role.AGENT, reversed(messages)))


def _says_something(parts: Iterable[Part]) -> bool:
    return any(isinstance(part, ImagePart) or says_something(part.text) for part in parts)


# --- Messages as LiteLLM passes them on ------------------------------------------------------------------


def _message(message: dict[str, Any], index: int) -> Message:
    """A message of any provider that LiteLLM speaks to. Raises InvalidRequest for what cannot be judged."""
    path = f"structured_messages[{index}]"
    role, parts = message.get("role"), list[Part]()
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidRequest(f"Unknown role. Known roles are: {', '.join(ROLES)}.", param=f"{path}.role")
    for key, value in message.items():
        field = f"{path}.{key}" if key in FIELDS else path
        match key, value:
            case "role", _:
                pass
            case "content" | "images", list():
                for position, part in enumerate(value):
                    parts += _part(part, f"{field}[{position}]")
            case "tool_calls", list():
                for position, call in enumerate(value):
                    parts += _call(call, f"{field}[{position}]")
            case "function_call", dict():
                parts += _call({"function": value}, field)
            case _:
                parts += _words({key: value}, field)
    return Message(role, tuple(parts))


def _part(part: Any, path: str) -> Iterator[Part]:
    """What a content part says or shows, and then all that stands beside that."""
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise InvalidRequest("A content part is an object with a type.", param=path)
    if kind in TEXT_KEYS and isinstance(words := part.get(key := TEXT_KEYS[kind]), str):
        yield TextPart(words, f"{path}.{key}")
        yield from _words(_without(part, key), path)
    elif kind in IMAGE_KINDS:
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        if not isinstance(url, str):
            raise InvalidRequest("An image part needs its URL.", param=f"{path}.image_url")
        yield ImagePart(_url(url), f"{path}.image_url")
        if isinstance(image, dict):
            yield from _words(_without(image, "url"), f"{path}.image_url")
        yield from _words(_without(part, "image_url"), path)
    elif kind in ENCRYPTED:
        yield from _words(part, path)
    else:
        raise InvalidRequest("A content part of this kind cannot be judged.", param=path)


def _call(call: Any, path: str) -> Iterator[TextPart]:
    """A call of a tool as chat completions judge it, and what stands beside it; one of another shape as a whole."""
    match call:
        case {"function": {"arguments": str() as arguments} as function} if isinstance(
            name := function.get("name") or "", str
        ):
            yield TextPart(f"{name}({arguments})", path)
            yield from _words(_without(function, "name", "arguments"), path)
            yield from _words(_without(call, "function"), path)
        case _:
            yield TextPart(json.dumps(call, ensure_ascii=False), path)


def _words(value: Any, path: str) -> Iterator[TextPart]:
    """Every text within a value that is not known, such as a model's thoughts; `path` is the field that holds it."""
    if isinstance(value, str):
        yield TextPart(value, path)
    elif isinstance(value, list):
        for item in value:
            yield from _words(item, path)
    elif isinstance(value, dict):
        kind = value.get("type")
        hidden = ENCRYPTED.get(kind) if isinstance(kind, str) else None
        for key, item in value.items():
            if IDENTIFIER.fullmatch(key) is None:
                yield TextPart(key, path)
            if not (isinstance(item, str) and _says_nothing(key, item, hidden)):
                yield from _words(item, path)


def _says_nothing(key: str, text: str, hidden: str | None) -> bool:
    """Whether `text` is a mere identifier or token, where `key` is one for such; `hidden` is a key for tokens too."""
    if key in LABELS:
        return IDENTIFIER.fullmatch(text) is not None
    return (key in TOKENS or key == hidden) and OPAQUE.fullmatch(text) is not None


def _without(value: dict[str, Any], *known: str) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key not in known}


def _extent(value: Any) -> tuple[int, int]:
    """Levels of lists and objects in `value`, and characters of its texts and keys."""
    levels, characters, level = 0, 0, [value]
    while level:
        below = list[Any]()
        for item in level:
            if isinstance(item, str):
                characters += len(item)
            elif isinstance(item, list):
                below += item
            elif isinstance(item, dict):
                below += [*item, *item.values()]
        levels, level = levels + 1, below
    return levels, characters


def _url(image: str) -> str:
    """LiteLLM passes some providers' images on as base64 alone."""
    return image if ":" in image[:16] else f"data:;base64,{image}"


def _payload(url: str) -> str:
    return url.rpartition(";base64,")[2] if url[:5].lower() == "data:" else url
