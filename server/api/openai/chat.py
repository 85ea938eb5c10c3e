"""POST /v1/chat/completions in OpenAI's dialect: the conversation is judged, the reply is the verdict."""

import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from server.api.chat.completion import ChatChoice, ChatUsage, CompletionHead, choices, deltas, usage
from server.api.chat.examples import BODIES
from server.api.chat.judging import Judged, judge
from server.api.chat.request import MAX_CHOICES, ChatRequest, StreamOptions
from server.api.endpoint import Endpoint, answered
from server.api.http.body import read_body
from server.api.http.description import ERRORS, json_body, reply
from server.api.http.direct import DirectRoute, JSONReply
from server.api.http.ids import new_id
from server.api.http.sse import DONE, event, stream
from server.api.openai import examples
from server.api.service import Reply, Service
from server.domain.caller import Handling

router = APIRouter(prefix="/v1", tags=["chat"], route_class=DirectRoute)


class ChatCompletion(CompletionHead):
    choices: Annotated[list[ChatChoice], Field(min_length=1, max_length=MAX_CHOICES)]
    usage: ChatUsage


async def complete(service: Service, body: ChatRequest, handling: Handling) -> Reply[ChatCompletion]:
    judged = await judge(service, body, handling)
    return Reply(_document(service, body, judged), [judged.verdict])


def _document(service: Service, body: ChatRequest, judged: Judged) -> ChatCompletion:
    return {
        "id": new_id("chatcmpl-"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": service.names.id,
        "system_fingerprint": service.fingerprint,
        "choices": choices(judged, body.n),
        "usage": usage(judged.verdict, body.token_limit),
        "guard": judged.detail,
    }


ENDPOINT = Endpoint("/v1/chat/completions", ChatRequest, complete)


@router.post(
    "/chat/completions",
    summary="Judge the last message of a conversation",
    openapi_extra=json_body(ChatRequest, BODIES),
    responses={
        200: reply(ChatCompletion, "The verdict as the assistant's reply", examples.COMPLETION, events=examples.CHUNK),
        **ERRORS,
    },
)
async def create_chat_completion(request: Request) -> Response:
    body = await read_body(request, ChatRequest)
    # A verdict is checked as a whole before its first byte is sent, so streams fail with a status too.
    document = (await answered(request, body, complete)).document
    if not body.stream:
        return JSONReply(document)
    return stream(_chunks(document, body.stream_options or StreamOptions()))


async def _chunks(document: ChatCompletion, options: StreamOptions) -> AsyncIterator[str]:
    """The same reply in chunks: the role, each choice's content and end, and the usage if it was requested."""
    head: dict[str, object] = {
        "id": document["id"],
        "created": document["created"],
        "model": document["model"],
        "system_fingerprint": document["system_fingerprint"],
        "object": "chat.completion.chunk",
    }
    whole, counted = document["usage"], options.include_usage and options.continuous_usage_stats
    begun = {**whole, "completion_tokens": 0, "total_tokens": whole["prompt_tokens"]}
    for choice in document["choices"]:
        message = choice["message"]
        pieces: list[tuple[dict[str, Any], str | None]] = [
            ({"role": "assistant", "content": message["content"] and "", "refusal": None}, None),
            *((delta, None) for delta in deltas(message)),
            ({}, choice["finish_reason"]),
        ]
        for delta, finish_reason in pieces:
            chunk = {
                "index": choice["index"],
                "delta": delta,
                "logprobs": choice["logprobs"] if delta.get("content") else None,
                "finish_reason": finish_reason,
            }
            detail = {"guard": document["guard"]} if finish_reason else {}
            so_far = (begun if "role" in delta else whole) if counted else None
            usage_ = {"usage": so_far} if options.include_usage else {}
            yield event({**head, "choices": [chunk], **usage_, **detail})
    if options.include_usage:
        yield event({**head, "choices": [], "usage": document["usage"]})
    yield DONE
