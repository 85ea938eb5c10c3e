"""POST /api/v1/chat/completions: OpenAI's chat completions with OpenRouter's names, costs and generation ids.

The request goes the way of api/chat.py; what OpenRouter adds is read here, or accepted and ignored because it chooses
among models and providers that this server has not, or refused because it promises what a verdict has not.
"""

import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

from server.api import chat
from server.api.body import read_body
from server.api.chat import ChatMessage, ChatRequest
from server.api.examples import json_request
from server.api.openrouter import examples, naming
from server.api.openrouter.generations import Generation, Generations
from server.api.service import Reply, Service, answered
from server.caller import Caller, Handling
from server.conversation import Conversation, Message, Part, TextPart
from server.errors import GuardError

router = APIRouter(prefix="/api/v1", tags=["OpenRouter"])

IGNORED_FIELDS = frozenset(
    {
        "cache_control",
        "debug",
        "image_config",
        "include_reasoning",
        "min_p",
        "reasoning",
        "repetition_penalty",
        "route",
        "session_id",
        "stop_server_tools_when",
        "top_a",
        "top_k",
        "trace",
        "transforms",
        "usage",
    }
)
"""A verdict is decoded greedily, nothing is cut out of a prompt, nothing is stored, and usage is always told."""


class ReasoningDetail(BaseModel):
    """A piece of what a reasoning model sent before. What is encrypted nobody can read, nor judge."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    text: str | None = None
    summary: str | None = None


class OpenRouterMessage(ChatMessage):
    """A reply of OpenRouter's goes back as it came, with what its model thought aloud: that is judged too."""

    model: str | None = None
    reasoning: str | None = None
    reasoning_details: list[ReasoningDetail] | None = Field(None, fail_fast=True)

    def parts(self, index: int) -> tuple[Part, ...]:
        details = (words for detail in self.reasoning_details or () for words in (detail.text, detail.summary))
        thoughts = dict.fromkeys(words for words in (self.reasoning, *details) if words)
        return (*(TextPart(words) for words in thoughts), *super().parts(index))


class ProviderPreferences(BaseModel):
    """Here is one provider; of the preferences only those about privacy have a meaning."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    zdr: bool | None = Field(None, description="True keeps the request on this machine.")
    data_collection: str | None = Field(None, description='"deny" keeps the request on this machine.')

    @property
    def stay_here(self) -> bool:
        return self.zdr is True or self.data_collection == "deny"


class OpenRouterChatRequest(ChatRequest):
    messages: list[OpenRouterMessage] = Field(min_length=1, fail_fast=True)  # type: ignore[assignment]
    models: list[str] | None = Field(None, description="Tried after `model`: one of them must be served.")
    provider: ProviderPreferences | None = None
    plugins: list[Any] | None = Field(None, max_length=0, description="Only an empty list: no plugin runs here.")

    @model_validator(mode="before")
    @classmethod
    def _ignore_what_has_no_meaning_here(cls, body: Any) -> Any:
        return {name: value for name, value in body.items() if name not in IGNORED_FIELDS}

    def conversation(self) -> Conversation:
        return Conversation.from_messages(
            [Message(message.role, message.parts(index)) for index, message in enumerate(self.messages)]
        )


async def complete(service: Service, body: OpenRouterChatRequest, handling: Handling) -> Reply:
    naming.check_any(service.names, [name for name in (body.model, *(body.models or ())) if name is not None])
    if body.provider is not None and body.provider.stay_here:
        handling = replace(handling, never_remote=True)
    reply = await chat.complete(service, body.model_copy(update={"model": None}), handling)
    return replace(reply, document=_document(service, reply))


@router.post(
    "/chat/completions",
    summary="Judge the last message of a conversation",
    openapi_extra=json_request(OpenRouterChatRequest, examples.REQUEST_EXAMPLES),
    responses=examples.CHAT,
)
async def create_openrouter_chat_completion(request: Request) -> Response:
    generations: Generations = request.app.state.generations
    started = time.perf_counter()
    body = await read_body(request, OpenRouterChatRequest)
    try:
        reply = await answered(request, body, complete)
    except GuardError as error:
        if error.status >= 500:
            generations.add_failure()
        raise
    seconds = time.perf_counter() - started
    generations.add(_generation(request, reply, streamed=bool(body.stream), seconds=seconds))
    if body.stream:
        return StreamingResponse(_stream(reply.document), media_type="text/event-stream")
    return JSONResponse(reply.document)


def _document(service: Service, reply: Reply) -> dict[str, Any]:
    """The reply with OpenRouter's keys. Who is paid nothing costs nothing: only a remote backend brings a cost."""
    document, completion = reply.document, reply.verdicts[0].completion
    local = completion.provider is None
    choices = [{**choice, "native_finish_reason": completion.finish_reason} for choice in document["choices"]]
    nothing = {"upstream_inference_prompt_cost": 0.0, "upstream_inference_completions_cost": 0.0}
    return {
        **document,
        "id": f"gen-{document['created']}-{uuid.uuid4().hex}",
        "model": naming.slug_of(service.names),
        "provider": completion.provider or naming.PROVIDER,
        "service_tier": document.get("service_tier"),
        "choices": choices,
        "usage": {
            **document["usage"],
            "cost": _cost(reply),
            "is_byok": False,
            # How a remote cost is made up is not told.
            "cost_details": {"upstream_inference_cost": None, **nothing} if local else None,
        },
    }


def _cost(reply: Reply) -> float:
    return sum((verdict.completion.cost or 0.0 for verdict in reply.verdicts), 0.0)


def _generation(request: Request, reply: Reply, *, streamed: bool, seconds: float) -> Generation:
    caller: Caller = request.state.caller
    document, completion = reply.document, reply.verdicts[0].completion
    return Generation(
        id=document["id"],
        owner=caller.owner,
        request_id=request.state.request_id,
        created=time.time(),
        model=document["model"],
        provider=document["provider"],
        streamed=streamed,
        finish_reason=document["choices"][0]["finish_reason"],
        native_finish_reason=completion.finish_reason,
        prompt_tokens=document["usage"]["prompt_tokens"],
        completion_tokens=document["usage"]["completion_tokens"],
        cached_tokens=completion.cached_tokens,
        images=completion.images,
        cost=_cost(reply),
        upstream_cost=completion.cost,
        latency_s=seconds,
        computed_s=completion.computed_s,
    )


async def _stream(document: dict[str, Any]) -> AsyncIterator[str]:
    """The same reply in chunks: each choice's content and end, and always the usage, in the last one."""
    head = {key: document[key] for key in ("id", "created", "model", "provider", "system_fingerprint")}
    head["object"] = "chat.completion.chunk"
    for choice in document["choices"]:
        said = {"role": "assistant", "content": choice["message"]["content"]}
        reasons = {key: choice[key] for key in ("finish_reason", "native_finish_reason")}
        content = {"index": choice["index"], "delta": said, "logprobs": choice["logprobs"], **dict.fromkeys(reasons)}
        end = {"index": choice["index"], "delta": {"role": "assistant", "content": ""}, "logprobs": None, **reasons}
        yield _event({**head, "choices": [content]})
        yield _event({**head, "choices": [end], "guard": document["guard"]})
    yield _event({**head, "choices": [], "usage": document["usage"]})
    yield "data: [DONE]\n\n"


def _event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n"
