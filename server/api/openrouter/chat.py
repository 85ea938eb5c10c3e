"""POST /api/v1/chat/completions: OpenAI's chat completions with OpenRouter's names, costs and generation ids.

The request goes the way of api/openai/chat.py, which reads what OpenRouter adds to it too; only the reply differs.
"""

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse

from server.api.examples import json_request
from server.api.http.body import read_body
from server.api.http.direct import DirectRoute, JSONReply
from server.api.http.ids import new_id
from server.api.openai import chat
from server.api.openai.chat import ChatRequest
from server.api.openrouter import examples, naming
from server.api.openrouter.generations import Generation, Generations
from server.api.service import Reply, Service, answered
from server.domain.caller import Caller, Handling
from server.domain.errors import GuardError

router = APIRouter(prefix="/api/v1", tags=["OpenRouter"], route_class=DirectRoute)


async def complete(service: Service, body: ChatRequest, handling: Handling) -> Reply:
    reply = await chat.complete(service, body, handling)
    return replace(reply, document=_document(service, reply))


@router.post(
    "/chat/completions",
    summary="Judge the last message of a conversation",
    openapi_extra=json_request(ChatRequest, examples.REQUEST_EXAMPLES),
    responses=examples.CHAT,
)
async def create_openrouter_chat_completion(request: Request) -> Response:
    generations: Generations = request.app.state.generations
    started = time.perf_counter()
    body = await read_body(request, ChatRequest)
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
    return JSONReply(reply.document)


def _document(service: Service, reply: Reply) -> dict[str, Any]:
    """The reply with OpenRouter's keys. Who is paid nothing costs nothing: only a remote backend brings a cost."""
    document, completion = reply.document, reply.verdicts[0].completion
    local = completion.provider is None
    choices = [{**choice, "native_finish_reason": completion.finish_reason} for choice in document["choices"]]
    nothing = {"upstream_inference_prompt_cost": 0.0, "upstream_inference_completions_cost": 0.0}
    return {
        **document,
        "id": new_id(f"gen-{document['created']}-"),
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
        yield chat.event({**head, "choices": [content]})
        yield chat.event({**head, "choices": [end], "guard": document["guard"]})
    yield chat.event({**head, "choices": [], "usage": document["usage"]})
    yield "data: [DONE]\n\n"
