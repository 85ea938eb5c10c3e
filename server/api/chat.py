"""POST /v1/chat/completions in OpenAI's dialect: the conversation is judged, the reply is the verdict.

Every field is read here, or accepted and ignored because it cannot change a verdict, or refused: because it could
change one unseen, or because ignoring it would mislead. docs/api.md shows the table.
"""

import json
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import Field, field_validator, model_validator

from server.api.body import read_body
from server.api.content import StringOrParts, WireModel, to_parts
from server.api.detail import verdict_detail
from server.api.examples import CHAT_EXAMPLES, CHAT_RESPONSES, json_request
from server.api.policy import PolicyOptions
from server.api.service import Endpoint, Reply, Service, answered
from server.caller import Handling
from server.conversation import Conversation, Message, Part, TextPart
from server.verdict import Verdict

router = APIRouter(prefix="/v1", tags=["chat"])

IGNORED_FIELDS = frozenset(
    {
        "frequency_penalty",
        "function_call",
        "functions",
        "logit_bias",
        "max_completion_tokens",
        "max_tokens",
        "metadata",
        "modalities",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "seed",
        "service_tier",
        "stop",
        "store",
        "temperature",
        "tool_choice",
        "tools",
        "top_p",
        "user",
        "verbosity",
    }
)
"""A verdict is decoded greedily and never cut, and nothing is stored; so these change nothing."""


class FunctionCall(WireModel):
    name: str
    arguments: str


class ToolCall(WireModel):
    id: str | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(WireModel):
    role: Literal["user", "assistant", "system", "developer", "tool", "function"]
    content: StringOrParts | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = Field(None, fail_fast=True)
    tool_call_id: str | None = None
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _skip_what_is_empty(cls, message: Any) -> Any:
        # OpenAI's SDK sends its own replies back with every field it knows, most of them null.
        if not isinstance(message, dict):
            return message
        return {name: value for name, value in message.items() if name in cls.model_fields or value not in (None, [])}

    def parts(self, index: int) -> tuple[Part, ...]:
        """All that the message says: content, refusal and the calls it makes. None of it escapes judgement."""
        parts = to_parts(self.content, f"messages[{index}].content") if self.content is not None else ()
        refusal = (TextPart(self.refusal),) if self.refusal else ()
        calls = (TextPart(f"{call.function.name}({call.function.arguments})") for call in self.tool_calls or ())
        return (*parts, *refusal, *calls)


class StreamOptions(WireModel):
    include_usage: bool = False
    include_obfuscation: bool = Field(False, description="Accepted and ignored.")


class ChatRequest(WireModel):
    messages: list[ChatMessage] = Field(min_length=1, fail_fast=True)
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=1, description="There is one verdict.")
    logprobs: bool | None = Field(None, description="Only false: the field `guard` of the reply holds probabilities.")
    policy: PolicyOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _ignore_what_changes_nothing(cls, body: Any) -> Any:
        return {name: value for name, value in body.items() if name not in IGNORED_FIELDS}

    @field_validator("logprobs")
    @classmethod
    def _refuse_logprobs(cls, logprobs: bool | None) -> bool | None:
        if logprobs:
            raise ValueError("log-probabilities are not served, but the field 'guard' of the reply holds probabilities")
        return logprobs

    def conversation(self) -> Conversation:
        return Conversation.from_messages(
            [Message(message.role, message.parts(index)) for index, message in enumerate(self.messages)]
        )


async def complete(service: Service, body: ChatRequest, handling: Handling) -> Reply:
    (verdict,) = await service.judge([body.conversation()], model=body.model, policy=body.policy, handling=handling)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": verdict.text, "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }
    document = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": service.names.id,
        "system_fingerprint": service.fingerprint,
        "choices": [choice],
        "usage": _usage(verdict),
        "guard": verdict_detail(verdict),
    }
    return Reply(document, [verdict])


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
        return JSONResponse(document)
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
            yield _event({**head, "choices": [chunk], **usage, **detail})
    if include_usage:
        yield _event({**head, "choices": [], "usage": document["usage"]})
    yield "data: [DONE]\n\n"


def _event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n"


def _usage(verdict: Verdict) -> dict[str, Any]:
    completion = verdict.completion
    return {
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion.completion_tokens,
        "total_tokens": completion.prompt_tokens + completion.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": completion.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
