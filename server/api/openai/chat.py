"""POST /v1/chat/completions in OpenAI's dialect: the conversation is judged, the reply is the verdict.

Every field is read here, or accepted and ignored because it cannot change a verdict (sampling.py), or refused:
because it could change one unseen, or because ignoring it would mislead. docs/api.md shows the table.
"""

import json
import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from server.api.content import (
    IDENTIFIER,
    OPAQUE,
    ImageContent,
    Object,
    StringOrParts,
    StringOrStrings,
    WireModel,
    to_parts,
)
from server.api.detail import verdict_detail
from server.api.examples import CHAT_EXAMPLES, CHAT_RESPONSES, json_request
from server.api.http.body import read_body
from server.api.http.direct import DirectRoute, JSONReply
from server.api.http.ids import new_id
from server.api.openai import logprobs
from server.api.openai.models import ModelNames
from server.api.openai.sampling import IgnoredOptions
from server.api.policy import PolicyOptions, ScoresWanted
from server.api.service import Endpoint, Reply, Service, answered
from server.domain.caller import Handling
from server.domain.conversation import Conversation, ImagePart, Message, Part, TextPart
from server.domain.errors import InvalidRequest
from server.domain.events import FinishedPromptJudged, publish
from server.domain.verdict import Verdict
from server.families.base import Family, FinishedPrompt, Wording
from server.settings import Settings

log = logging.getLogger(__name__)

router = APIRouter(prefix="/v1", tags=["chat"], route_class=DirectRoute)

MAX_CHOICES = 128
MAX_ALTERNATIVES = 20
MAX_STOPS = 4


# --- Messages --------------------------------------------------------------------------------------------


class FunctionCall(WireModel):
    name: str
    arguments: str


class ToolCall(WireModel):
    id: str | None = None
    index: int | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class CustomCall(WireModel):
    name: str
    input: str


class CustomToolCall(WireModel):
    id: str | None = None
    index: int | None = None
    type: Literal["custom"]
    custom: CustomCall


AnyToolCall = Annotated[
    Annotated[ToolCall, Tag("<function>")] | Annotated[CustomToolCall, Tag("<custom>")],
    Discriminator(
        lambda value: "<custom>" if isinstance(value, dict) and value.get("type") == "custom" else "<function>"
    ),
]


class ReasoningDetail(WireModel):
    """A part of OpenRouter's record of how a model thought. What is encrypted says nothing to anybody."""

    type: Literal["reasoning.text", "reasoning.summary", "reasoning.encrypted"]
    text: str | None = None
    summary: str | None = None
    data: str | None = None
    signature: str | None = None
    id: str | None = None
    format: str | None = None
    index: int | None = None

    def asides(self) -> Iterator[tuple[str, str]]:
        """Fields that should hold tokens of programs and hold words, and `data` that is not encrypted."""
        if self.data and (self.type != "reasoning.encrypted" or OPAQUE.fullmatch(self.data) is None):
            yield "data", self.data
        for field, value in (("signature", self.signature), ("id", self.id), ("format", self.format)):
            if value and OPAQUE.fullmatch(value) is None:
                yield field, value


class UrlCitation(WireModel):
    url: str
    title: str | None = None
    content: str | None = None
    start_index: int | None = None
    end_index: int | None = None


class Annotation(WireModel):
    type: Literal["url_citation"]
    url_citation: UrlCitation


class ChatMessage(WireModel):
    role: Literal["user", "assistant", "system", "developer", "tool", "function"]
    content: StringOrParts | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    reasoning_details: list[ReasoningDetail] | None = Field(None, fail_fast=True)
    images: list[ImageContent] | None = Field(None, fail_fast=True)
    annotations: list[Annotation] | None = Field(None, fail_fast=True)
    tool_calls: list[AnyToolCall] | None = Field(None, fail_fast=True)
    function_call: FunctionCall | None = None
    tool_call_id: str | None = None
    name: str | None = None
    model: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _skip_what_is_empty(cls, message: Any) -> Any:
        # OpenAI's SDK sends its own replies back with every field it knows, most of them null.
        if not isinstance(message, dict):
            return message
        return {
            name: value
            for name, value in message.items()
            if name in cls.model_fields or value not in (None, [], {}, "")
        }

    def parts(self, index: int) -> tuple[Part, ...]:
        """All that the message says: thoughts, content, refusal, sources and calls. None of it escapes judgement."""
        path = f"messages[{index}]"
        content = to_parts(self.content, f"{path}.content") if self.content is not None else ()
        images = to_parts(self.images or (), f"{path}.images")
        said = (*self._asides(), *self._sources(), *self._calls())
        thoughts = (TextPart(text, f"{path}.{field}") for field, text in self._thoughts())
        return (*thoughts, *content, *images, *(TextPart(text, f"{path}.{field}") for field, text in said))

    def _thoughts(self) -> Iterator[tuple[str, str]]:
        """Fields and their texts."""
        whole = list(dict.fromkeys(filter(None, [self.reasoning, self.reasoning_content])))
        if whole:
            yield "reasoning" if self.reasoning else "reasoning_content", "\n".join(whole)
        details = [
            (f"reasoning_details[{index}].{field}", text)
            for index, detail in enumerate(self.reasoning_details or ())
            for field, text in (("text", detail.text), ("summary", detail.summary))
            if text and text not in whole
        ]
        # OpenRouter says the same twice, as a whole and in parts.
        if "".join(text for _, text in details) not in whole:
            yield from details

    def _asides(self) -> Iterator[tuple[str, str]]:
        """What stands beside the content: a refusal, and words where a name or a token of a program should stand."""
        if self.refusal:
            yield "refusal", self.refusal
        if self.name and IDENTIFIER.fullmatch(self.name) is None:
            yield "name", self.name
        tokens = [("tool_call_id", self.tool_call_id), ("model", self.model)]
        tokens += [(f"tool_calls[{index}].id", call.id) for index, call in enumerate(self.tool_calls or ())]
        for field, token in tokens:
            if token and OPAQUE.fullmatch(token) is None:
                yield field, token
        for index, detail in enumerate(self.reasoning_details or ()):
            for field, words in detail.asides():
                yield f"reasoning_details[{index}].{field}", words

    def _sources(self) -> Iterator[tuple[str, str]]:
        for index, annotation in enumerate(self.annotations or ()):
            cited = annotation.url_citation
            yield f"annotations[{index}]", " ".join(filter(None, [cited.title, cited.url, cited.content]))

    def _calls(self) -> Iterator[tuple[str, str]]:
        for index, call in enumerate(self.tool_calls or ()):
            if isinstance(call, ToolCall):
                yield f"tool_calls[{index}]", f"{call.function.name}({call.function.arguments})"
            else:
                yield f"tool_calls[{index}]", f"{call.custom.name}({call.custom.input})"
        if self.function_call is not None:
            yield "function_call", f"{self.function_call.name}({self.function_call.arguments})"


# --- The request -----------------------------------------------------------------------------------------


class StreamOptions(WireModel):
    include_usage: bool = False
    include_obfuscation: bool = Field(False, description="Accepted and ignored.")


class ProviderPreferences(WireModel):
    """OpenRouter's wishes about who runs the model. Here the operator chooses; wishes for privacy are honoured."""

    zdr: bool | None = Field(None, description="True: at no provider that keeps what it is sent.")
    data_collection: Literal["allow", "deny"] | None = None
    allow_fallbacks: bool | None = None
    enforce_distillable_text: bool | None = None
    ignore: list[str] | None = None
    max_price: Object | None = None
    only: list[str] | None = None
    order: list[str] | None = None
    preferred_max_latency: Any = None
    preferred_min_throughput: Any = None
    quantizations: list[str] | None = None
    require_parameters: bool | None = None
    sort: Any = None

    def stricter_than(self, settings: Settings) -> bool:
        """Whether a remote backend, as it is set up, could be laxer than this request wants."""
        keeps_data, collects_data = not settings.openrouter_zdr, settings.openrouter_data_collection != "deny"
        return bool(self.zdr and keeps_data) or bool(self.data_collection == "deny" and collects_data)


class ChatRequest(IgnoredOptions):
    messages: list[ChatMessage] = Field(min_length=1, fail_fast=True)
    model: str | None = None
    models: list[str] | None = Field(None, description="Further models that would do.")
    provider: ProviderPreferences | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="There is one verdict, and as many copies of it.")
    max_tokens: int | None = Field(None, ge=0, description="Cuts the list of codes, never the verdict; 0 is no bound.")
    max_completion_tokens: int | None = Field(None, ge=0, description="The same under its newer name.")
    stop: StringOrStrings | None = Field(None, description="Up to 4 texts, none of which splits a word or a code.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES, description="Only together with logprobs.")
    policy: PolicyOptions | None = None
    category_scores: ScoresWanted = None

    @field_validator("stop")
    @classmethod
    def _bound_the_stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        stops = [stop] if isinstance(stop, str) else stop or []
        if len(stops) > MAX_STOPS:
            raise ValueError(f"at most {MAX_STOPS} texts are taken")
        return stop

    @field_validator("top_logprobs")
    @classmethod
    def _refuse_without_logprobs(cls, top_logprobs: int | None, info: ValidationInfo) -> int | None:
        if top_logprobs is not None and not info.data.get("logprobs"):
            raise ValueError("it needs 'logprobs' to be true")
        return top_logprobs

    @property
    def stops(self) -> Sequence[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or ()

    @property
    def token_limit(self) -> int | None:
        """The smaller of both bounds. Zero is what some clients send for none at all."""
        return min(filter(None, (self.max_tokens, self.max_completion_tokens)), default=None)

    @cached_property
    def said(self) -> list[tuple[Part, ...]]:
        """What each of the messages says."""
        return [message.parts(index) for index, message in enumerate(self.messages)]

    def conversation(self) -> Conversation:
        return Conversation.from_messages(
            [Message(message.role, parts) for message, parts in zip(self.messages, self.said, strict=True)]
        )

    def finished_prompt(self, family: Family) -> FinishedPrompt | None:
        """The Guard prompt that the only message is as a whole, if it is one."""
        if len(self.messages) != 1 or self.messages[0].role != "user":
            return None
        (parts,) = self.said
        texts = [part.text for part in parts if isinstance(part, TextPart)]
        if len(texts) != 1:
            return None
        try:
            return family.finished_prompt(texts[0], [part for part in parts if isinstance(part, ImagePart)])
        except InvalidRequest as error:
            raise error.at("messages[0].content") from None

    def model_in(self, names: ModelNames) -> str | None:
        """The first of the models asked for that is served here; when none is, the first one."""
        asked = [name for name in (self.model, *(self.models or ())) if name is not None]
        return next(filter(names.knows, asked), asked[0] if asked else None)


# --- The reply -------------------------------------------------------------------------------------------


async def complete(service: Service, body: ChatRequest, handling: Handling) -> Reply:
    if any(map(service.family.splits_an_answer, body.stops)):
        message = "it would split the words or codes that verdicts are made of"
        raise InvalidRequest(f"Invalid value for 'stop': {message}.", param="stop")
    if body.logprobs:
        handling = replace(handling, top_logprobs=body.top_logprobs or 0)
    if body.provider is not None and body.provider.stricter_than(service.settings):
        handling = replace(handling, never_remote=True)
    model = body.model_in(service.names)
    prompt = body.finished_prompt(service.family)
    if prompt is None:
        (verdict,) = await service.judge(
            [body.conversation()], model=model, policy=body.policy, scores=body.category_scores, handling=handling
        )
        answer = service.family.write(verdict, max_tokens=body.token_limit, stop=body.stops)
        return Reply(_document(service, body, verdict, answer, verdict_detail(verdict)), [verdict])

    trusted = handling.finished_prompts or service.settings.finished_prompts
    options, codes = _options_of(prompt, body.policy, service) if trusted else (body.policy, {})
    conversation = prompt.conversation() if trusted else prompt.everything(service.taxonomy)
    try:
        (verdict,) = await service.judge(
            [conversation], model=model, policy=options, scores=body.category_scores, handling=handling
        )
    except InvalidRequest as error:
        if error.param is not None and error.param.startswith("policy") and body.policy is None:
            # What is wrong with the policy is wrong with the prompt that it was read from.
            raise error.at("messages[0].content") from None
        raise
    publish(FinishedPromptJudged(trusted))
    if not trusted:
        _warn_once()
    answer = service.family.write(verdict, codes=codes, max_tokens=body.token_limit, stop=body.stops)
    judged_by = "prompt_policy" if trusted else "server_policy"
    detail = {**verdict_detail(verdict.under(codes)), "finished_prompt": judged_by}
    return Reply(_document(service, body, verdict, answer, detail), [verdict])


@cache
def _warn_once() -> None:
    log.warning(
        "A finished Guard prompt came from a caller without the right to choose what is asked: its categories are"
        " ignored, and each of its messages is judged by this server's policy. To change that, give the caller a key"
        " made with `keys create --finished-prompts`, or set GUARD_FINISHED_PROMPTS=true (docs/migrate.md)."
    )


def _options_of(
    prompt: FinishedPrompt, asked: PolicyOptions | None, service: Service
) -> tuple[PolicyOptions | None, Mapping[str, str]]:
    """The policy that a finished prompt asks for, and the model's codes to those of the prompt where they differ."""
    if asked is not None and (asked.categories is not None or asked.excluded_categories):
        raise InvalidRequest("A finished Guard prompt has its own categories.", param="policy")
    options = asked or PolicyOptions.model_validate({})
    if not prompt.asks_for(service.taxonomy):
        return options.model_copy(update={"categories": dict(prompt.words)}), prompt.codes
    if not service.settings.request_policy:
        return asked, {}  # asking about more than the prompt does is never laxer
    unasked = [code for code in service.moderator.policy.taxonomy.codes if code not in prompt.categories]
    return options.model_copy(update={"excluded_categories": unasked}), {}


def _document(
    service: Service, body: ChatRequest, verdict: Verdict, answer: Wording, detail: dict[str, Any]
) -> dict[str, Any]:
    tokens = answer.tokens
    choice = {
        "message": {"role": "assistant", "content": answer.text, "refusal": None},
        "logprobs": None if tokens is None else {"content": [*map(logprobs.entry, tokens)], "refusal": None},
        "finish_reason": "length" if answer.cut else "stop",
    }
    return {
        "id": new_id("chatcmpl-"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": service.names.id,
        "system_fingerprint": service.fingerprint,
        "choices": [{"index": index, **choice} for index in range(body.n or 1)],
        "usage": _usage(verdict, body.token_limit),
        "guard": detail,
    }


ENDPOINT = Endpoint("/v1/chat/completions", ChatRequest, complete)


@router.post(
    "/chat/completions",
    summary="Judge the last message of a conversation",
    openapi_extra=json_request(ChatRequest, CHAT_EXAMPLES),
    responses=CHAT_RESPONSES,
)
async def create_chat_completion(request: Request) -> Response:
    body = await read_body(request, ChatRequest)
    # A verdict is checked as a whole before its first byte is sent, so streams fail with a status too.
    document = (await answered(request, body, complete)).document
    if not body.stream:
        return JSONReply(document)
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    return StreamingResponse(_stream(document, include_usage), media_type="text/event-stream")


async def _stream(document: dict[str, Any], include_usage: bool) -> AsyncIterator[str]:
    """The same reply in chunks: the role, each choice's content and end, the usage if it was asked for."""
    head = {key: document[key] for key in ("id", "created", "model", "system_fingerprint")}
    head["object"] = "chat.completion.chunk"
    usage = {"usage": None} if include_usage else {}
    for choice in document["choices"]:
        deltas: list[tuple[dict[str, Any], str | None]] = [
            ({"role": "assistant", "content": "", "refusal": None}, None),
            ({"content": choice["message"]["content"]}, None),
            ({}, choice["finish_reason"]),
        ]
        for delta, finish_reason in deltas:
            chunk = {
                "index": choice["index"],
                "delta": delta,
                "logprobs": choice["logprobs"] if delta.get("content") else None,
                "finish_reason": finish_reason,
            }
            detail = {"guard": document["guard"]} if finish_reason else {}
            yield event({**head, "choices": [chunk], **usage, **detail})
    if include_usage:
        yield event({**head, "choices": [], "usage": document["usage"]})
    yield "data: [DONE]\n\n"


def event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n"


def _usage(verdict: Verdict, token_limit: int | None) -> dict[str, Any]:
    """Tokens of the one verdict, however many choices tell of it, and never more of them than were allowed."""
    completion = verdict.completion
    completion_tokens = min(completion.completion_tokens, token_limit or completion.completion_tokens)
    return {
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": completion.prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": completion.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
