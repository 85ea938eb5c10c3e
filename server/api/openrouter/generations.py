"""GET /api/v1/generation: the figures of recent replies. No content is kept."""

import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field

from server.api.http.description import reply
from server.api.http.direct import JSONReply
from server.api.http.shapes import Closed, Count
from server.api.http.state import caller_of, served
from server.api.openrouter.errors import BAD_QUERY, NOT_FOUND
from server.api.openrouter.money import Dollars
from server.domain.errors import GenerationNotFound

router = APIRouter(prefix="/api/v1", tags=["OpenRouter"])

REMEMBERED = 10_000
"""The number of generations and outcomes that are kept in memory. Older ones are forgotten."""

Milliseconds = Annotated[float, Field(ge=0)]
FinishReason = Literal["stop", "length", "tool_calls"]


class GenerationFigures(Closed):
    id: str
    request_id: str
    created_at: str
    model: str
    provider_name: str
    api_type: Literal["completions"]
    streamed: bool
    cancelled: Literal[False]
    finish_reason: FinishReason
    native_finish_reason: Literal["stop"]
    latency: Milliseconds
    generation_time: Milliseconds
    moderation_latency: None
    tokens_prompt: Count
    tokens_completion: Count
    native_tokens_prompt: Count
    native_tokens_completion: Count
    native_tokens_cached: Count
    native_tokens_reasoning: Literal[0]
    native_tokens_completion_images: Literal[0]
    num_media_prompt: Count
    num_input_audio_prompt: Literal[0]
    num_media_completion: Literal[0]
    num_search_results: Literal[0]
    num_fetches: Literal[0]
    total_cost: Dollars
    usage: Dollars
    upstream_inference_cost: Dollars | None
    cache_discount: None
    is_byok: Literal[False]
    upstream_id: None
    provider_responses: None
    origin: Literal[""]
    app_id: None
    http_referer: None
    user_agent: None
    external_user: None
    session_id: None
    workspace_id: None
    preset_id: None
    router: None
    service_tier: None
    web_search_engine: None
    data_region: Literal["global"]
    response_cache_source_id: None


class GenerationData(Closed):
    data: GenerationFigures


@dataclass(frozen=True, slots=True)
class Generation:
    """One reply: its owner, who alone may ask about it, and its figures. Durations are seconds, `cost` US dollars.

    `created` is seconds since 1970.
    """

    id: str
    owner: str
    request_id: str
    created: float
    model: str
    provider: str
    streamed: bool
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    images: int
    cost: float
    upstream_cost: float | None
    latency_s: float
    computed_s: float


class Generations:
    """The last replies of this dialect, and how many requests failed. Bounded, in memory."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        self._limit = limit
        self._kept: OrderedDict[str, Generation] = OrderedDict()
        self._outcomes: deque[tuple[float, bool]] = deque(maxlen=limit)

    def add(self, generation: Generation) -> None:
        self._kept[generation.id] = generation
        self._outcomes.append((generation.created, True))
        if len(self._kept) > self._limit:
            self._kept.popitem(last=False)

    def add_failure(self) -> None:
        """Count a request that failed through this server's fault."""
        self._outcomes.append((time.time(), False))

    def of(self, owner: str, id_: str) -> Generation:
        """Raises GenerationNotFound, also for another caller's generation, so that nobody learns that it exists."""
        generation = self._kept.get(id_)
        if generation is None or generation.owner != owner:
            raise GenerationNotFound(
                f"This server has no such generation. It keeps the last {REMEMBERED:,}, and none after a restart.",
                param="id",
            )
        return generation

    def since(self, moment: float) -> Iterator[Generation]:
        return (generation for generation in self._kept.values() if generation.created >= moment)

    def cost_of(self, owner: str, since: float = 0.0) -> float:
        """US dollars, over the generations that are remembered."""
        return sum((generation.cost for generation in self.since(since) if generation.owner == owner), 0.0)

    def uptime(self, seconds: float) -> float | None:
        """The percentage of requests in the last `seconds` that this server did not fail. None without requests."""
        outcomes = [answered for moment, answered in self._outcomes if moment >= time.time() - seconds]
        return 100.0 * sum(outcomes) / len(outcomes) if outcomes else None


@router.get(
    "/generation",
    summary="Get the figures of one reply",
    responses={200: reply(GenerationData, "The figures"), **BAD_QUERY, **NOT_FOUND},
)
async def get_generation(request: Request, id: str = Query(min_length=1, max_length=200)) -> JSONReply:  # noqa: A002
    generation = served(request).kept(Generations).of(caller_of(request).owner, id)
    document: GenerationData = {"data": _document(generation)}
    return JSONReply(document)


def _document(generation: Generation) -> GenerationFigures:
    """All of OpenRouter's keys. Null stands for things that this server does not do or keep, such as headers."""
    return {
        "id": generation.id,
        "request_id": generation.request_id,
        "created_at": datetime.fromtimestamp(generation.created, UTC).isoformat(),
        "model": generation.model,
        "provider_name": generation.provider,
        "api_type": "completions",
        "streamed": generation.streamed,
        "cancelled": False,
        "finish_reason": generation.finish_reason,
        "native_finish_reason": "stop",
        "latency": generation.latency_s * 1000,
        "generation_time": generation.computed_s * 1000,
        "moderation_latency": None,
        "tokens_prompt": generation.prompt_tokens,
        "tokens_completion": generation.completion_tokens,
        "native_tokens_prompt": generation.prompt_tokens,
        "native_tokens_completion": generation.completion_tokens,
        "native_tokens_cached": generation.cached_tokens,
        "native_tokens_reasoning": 0,
        "native_tokens_completion_images": 0,
        "num_media_prompt": generation.images,
        "num_input_audio_prompt": 0,
        "num_media_completion": 0,
        "num_search_results": 0,
        "num_fetches": 0,
        "total_cost": generation.cost,
        "usage": generation.cost,
        "upstream_inference_cost": generation.upstream_cost,
        "cache_discount": None,
        "is_byok": False,
        "upstream_id": None,
        "provider_responses": None,
        "origin": "",
        "app_id": None,
        "http_referer": None,
        "user_agent": None,
        "external_user": None,
        "session_id": None,
        "workspace_id": None,
        "preset_id": None,
        "router": None,
        "service_tier": None,
        "web_search_engine": None,
        "data_region": "global",
        "response_cache_source_id": None,
    }
