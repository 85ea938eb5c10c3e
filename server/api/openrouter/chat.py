"""POST /api/v1/chat/completions: chat completions with OpenRouter's names, costs and generation ids."""

import time
from collections.abc import AsyncIterator
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from server.api.chat.completion import ChatChoice, ChatUsage, CompletionHead, choices, deltas, usage
from server.api.chat.judging import Judged, judge
from server.api.chat.request import MAX_CHOICES, ChatRequest
from server.api.endpoint import answered
from server.api.http.body import read_body
from server.api.http.description import json_body, reply
from server.api.http.direct import DirectRoute, JSONReply
from server.api.http.ids import new_id
from server.api.http.shapes import Closed
from server.api.http.sse import DONE, event, stream
from server.api.http.state import caller_of, served, state_of
from server.api.names import PROVIDER
from server.api.openrouter import examples
from server.api.openrouter.errors import ERRORS
from server.api.openrouter.generations import Generation, Generations
from server.api.openrouter.money import Dollars, Nothing
from server.api.service import Reply, Service
from server.domain.caller import Handling
from server.domain.errors import GuardError
from server.domain.verdict import Completion

router = APIRouter(prefix="/api/v1", tags=["OpenRouter"], route_class=DirectRoute)


class OpenRouterChoice(ChatChoice):
    native_finish_reason: Literal["stop"]


class CostDetails(Closed):
    upstream_inference_cost: None
    upstream_inference_prompt_cost: Nothing
    upstream_inference_completions_cost: Nothing


class OpenRouterUsage(ChatUsage):
    """`cost_details` is null for a remote model, whose total cost alone is known."""

    cost: Dollars
    is_byok: Literal[False]
    cost_details: CostDetails | None


class OpenRouterCompletion(CompletionHead):
    provider: str
    service_tier: None
    choices: Annotated[list[OpenRouterChoice], Field(min_length=1, max_length=MAX_CHOICES)]
    usage: OpenRouterUsage


async def complete(service: Service, body: ChatRequest, handling: Handling) -> Reply[OpenRouterCompletion]:
    judged = await judge(service, body, handling)
    return Reply(_document(service, body, judged), [judged.verdict])


def _document(service: Service, body: ChatRequest, judged: Judged) -> OpenRouterCompletion:
    created, completion = int(time.time()), judged.verdict.completion
    return {
        "id": new_id(f"gen-{created}-"),
        "object": "chat.completion",
        "created": created,
        "model": service.names.slug,
        "provider": completion.provider or PROVIDER,
        "system_fingerprint": service.fingerprint,
        "service_tier": None,
        "choices": [{**choice, "native_finish_reason": "stop"} for choice in choices(judged, body.n)],
        "usage": {
            **usage(judged.verdict, body.token_limit),
            "cost": completion.cost or 0.0,
            "is_byok": False,
            "cost_details": _cost_details(completion),
        },
        "guard": judged.detail,
    }


def _cost_details(completion: Completion) -> CostDetails | None:
    """None for a remote verdict, of which only the total cost is known. A local verdict costs nothing."""
    if completion.provider is not None:
        return None
    return {
        "upstream_inference_cost": None,
        "upstream_inference_prompt_cost": 0.0,
        "upstream_inference_completions_cost": 0.0,
    }


@router.post(
    "/chat/completions",
    summary="Judge the last message of a conversation",
    openapi_extra=json_body(ChatRequest, examples.BODIES),
    responses={
        200: reply(
            OpenRouterCompletion, "The verdict as the assistant's reply", examples.COMPLETION, events=examples.CHUNK
        ),
        **ERRORS,
    },
)
async def create_openrouter_chat_completion(request: Request) -> Response:
    generations = served(request).kept(Generations)
    started = time.perf_counter()
    body = await read_body(request, ChatRequest)
    try:
        answer = await answered(request, body, complete)
    except GuardError as error:
        if error.status >= 500:
            generations.add_failure()
        raise
    seconds = time.perf_counter() - started
    generations.add(_generation(request, answer, streamed=bool(body.stream), seconds=seconds))
    if body.stream:
        return stream(_chunks(answer.document))
    return JSONReply(answer.document)


def _generation(request: Request, answer: Reply[OpenRouterCompletion], *, streamed: bool, seconds: float) -> Generation:
    document, completion = answer.document, answer.verdicts[0].completion
    return Generation(
        id=document["id"],
        owner=caller_of(request).owner,
        request_id=state_of(request).request_id,
        created=time.time(),
        model=document["model"],
        provider=document["provider"],
        streamed=streamed,
        finish_reason=document["choices"][0]["finish_reason"],
        prompt_tokens=document["usage"]["prompt_tokens"],
        completion_tokens=document["usage"]["completion_tokens"],
        cached_tokens=completion.cached_tokens,
        images=completion.images,
        cost=document["usage"]["cost"],
        upstream_cost=completion.cost,
        latency_s=seconds,
        computed_s=completion.computed_s,
    )


async def _chunks(document: OpenRouterCompletion) -> AsyncIterator[str]:
    """The same reply in chunks: each choice's content and end. The last chunk always has the usage."""
    head: dict[str, object] = {
        "id": document["id"],
        "created": document["created"],
        "model": document["model"],
        "provider": document["provider"],
        "system_fingerprint": document["system_fingerprint"],
        "object": "chat.completion.chunk",
    }
    for choice in document["choices"]:
        reasons = {
            "finish_reason": choice["finish_reason"],
            "native_finish_reason": choice["native_finish_reason"],
        }
        contents = [
            {
                "index": choice["index"],
                "delta": {"role": "assistant", "content": "", **delta},
                "logprobs": choice["logprobs"],
                **dict.fromkeys(reasons),
            }
            for delta in deltas(choice["message"])
        ]
        end = {
            "index": choice["index"],
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            **reasons,
        }
        for content in contents:
            yield event({**head, "choices": [content]})
        yield event({**head, "choices": [end], "guard": document["guard"]})
    yield event({**head, "choices": [], "usage": document["usage"]})
    yield DONE
