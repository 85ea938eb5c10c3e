"""The served model as OpenRouter shows models: what it takes, what it costs, and how its one endpoint does."""

import statistics
import time
from collections.abc import Iterable
from typing import Any

from fastapi import APIRouter, Query, Request

from server.api.openai.chat import ChatRequest
from server.api.openai.models import ModelNames
from server.api.openrouter import examples, naming
from server.api.openrouter.generations import Generations
from server.checkpoints.profile import Profile
from server.moderation.readiness import Readiness

router = APIRouter(prefix="/api/v1", tags=["OpenRouter"])

PARAMETERS = frozenset({"logprobs", "max_completion_tokens", "max_tokens", "seed", "stop", "top_logprobs"})
"""What of OpenRouter's parameters could mean something for a verdict. Claimed are those that chat completions read."""

LLAMA_4_VOCABULARY = 202_048

HALF_AN_HOUR_S = 1800
A_DAY_S = 86_400


MODERATOR = (
    "A moderation model: it answers whether the last message of a conversation is safe, or unsafe and by which hazard"
    " categories."
)
STAND_IN = "A stand-in for a moderation model, for trying out and for tests. It is not a moderator."


class ModelCard:
    """Facts of the served model in OpenRouter's words."""

    def __init__(self, profile: Profile, slug: str, created: int, *, sees: bool) -> None:
        self.slug = slug
        self._sees = sees
        self._profile = profile
        self._created = created

    @property
    def name(self) -> str:
        return self._profile.served_as[0].rpartition("/")[2]

    @property
    def inputs(self) -> list[str]:
        return ["text", "image"] if self._sees else ["text"]

    @property
    def parameters(self) -> list[str]:
        return sorted(PARAMETERS & set(ChatRequest.model_fields))

    @property
    def document(self) -> dict[str, Any]:
        profile = self._profile
        return {
            **self._head,
            "canonical_slug": self.slug,
            "hugging_face_id": None if profile.is_local else profile.model,
            "context_length": profile.context_tokens,
            "pricing": PRICING,
            "top_provider": {
                "context_length": profile.context_tokens,
                "max_completion_tokens": None,
                "is_moderated": False,
            },
            "per_request_limits": None,
            "supported_parameters": self.parameters,
            "default_parameters": None,
            "supported_voices": None,
            "knowledge_cutoff": None,
            "expiration_date": None,
            "links": {"details": f"/api/v1/models/{self.slug}/endpoints"},
        }

    def endpoints(self, generations: Generations, readiness: Readiness) -> dict[str, Any]:
        return {**self._head, "endpoints": [self.endpoint(generations, readiness)]}

    def endpoint(self, generations: Generations, readiness: Readiness) -> dict[str, Any]:
        """This server as a provider, with its own figures as far as it has some; nothing is made up."""
        profile = self._profile
        recent = list(generations.since(time.time() - HALF_AN_HOUR_S))
        return {
            "name": f"{naming.PROVIDER} | {self.slug}",
            "tag": naming.PROVIDER,
            "provider_name": naming.PROVIDER,
            "model_id": self.slug,
            "model_name": self.name,
            "context_length": profile.context_tokens,
            "max_prompt_tokens": None,
            "max_completion_tokens": None,
            "pricing": PRICING,
            "quantization": _quantization(profile),
            "supported_parameters": self.parameters,
            "native_tools": {},
            "service_tier": None,
            "supports_diarization": False,
            "supports_tool_choice": dict.fromkeys(("auto", "function", "none", "required"), False),
            "supports_implicit_caching": bool(profile.engine.get("enable_prefix_caching", True)),
            "status": 0 if readiness.reason_not_ready() is None else -1,
            "uptime_last_5m": generations.uptime(300),
            "uptime_last_30m": generations.uptime(HALF_AN_HOUR_S),
            "uptime_last_1d": generations.uptime(A_DAY_S),
            "latency_last_30m": _percentiles(generation.latency_s * 1000 for generation in recent),
            "throughput_last_30m": _percentiles(
                generation.completion_tokens / generation.latency_s for generation in recent if generation.latency_s
            ),
        }

    @property
    def _head(self) -> dict[str, Any]:
        return {
            "id": self.slug,
            "name": self.name,
            "created": self._created,
            "description": STAND_IN if self._profile.stand_in else MODERATOR,
            "architecture": {
                "modality": f"{'+'.join(self.inputs)}->text",
                "input_modalities": self.inputs,
                "output_modalities": ["text"],
                "tokenizer": "Llama4" if self._profile.vocabulary_size == LLAMA_4_VOCABULARY else "Other",
                "instruct_type": None,
            },
        }


PRICING = {"prompt": "0", "completion": "0", "request": "0", "image": "0"}
"""US dollars for each. This server bills nobody."""


@router.get("/models", summary="List the served model", responses=examples.BAD_QUERY)
@router.get("/models/user", summary="List the served model", responses=examples.BAD_QUERY)
async def list_openrouter_models(
    request: Request,
    q: str | None = None,
    input_modalities: str | None = None,
    output_modalities: str | None = None,
    supported_parameters: str | None = None,
    category: str | None = None,
    context: int | None = Query(None, ge=1),
    offset: int | None = Query(None, ge=0),
    limit: int | None = Query(None, ge=1, le=1000),
) -> dict[str, Any]:
    """Filters that the model does not meet leave the list empty. Other filters are ignored, as is an order of one."""
    card: ModelCard = request.app.state.model_card
    wanted = q is None or q.casefold() in f"{card.slug} {card.name}".casefold()
    meets = (
        wanted
        and category is None  # it is in none of OpenRouter's use cases
        and _holds(input_modalities, card.inputs)
        and (output_modalities == "all" or _holds(output_modalities, ["text"]))
        and _holds(supported_parameters, card.parameters)
        and (context is None or context <= card.document["context_length"])
    )
    found = [card.document] if meets else []
    page = found[offset or 0 :][: limit or None]
    return {"data": page, "total_count": len(found), "links": {"next": None}}


@router.get("/models/count", summary="How many models there are")
async def count_openrouter_models(output_modalities: str | None = None) -> dict[str, Any]:
    return {"data": {"count": int(output_modalities == "all" or _holds(output_modalities, ["text"]))}}


@router.get("/model/{author}/{slug}", summary="The served model", responses=examples.NOT_FOUND)
async def get_openrouter_model(author: str, slug: str, request: Request) -> dict[str, Any]:
    return {"data": _card(request, author, slug).document}


@router.get(
    "/models/{author}/{slug}/endpoints", summary="Who serves a model, and how well", responses=examples.NOT_FOUND
)
async def list_openrouter_endpoints(author: str, slug: str, request: Request) -> dict[str, Any]:
    state = request.app.state
    return {"data": _card(request, author, slug).endpoints(state.generations, state.readiness)}


@router.get("/endpoints/zdr", summary="Who serves models without keeping data")
async def list_openrouter_zdr_endpoints(request: Request) -> dict[str, Any]:
    state = request.app.state
    # A provider of the remote backend may be one that keeps what it is sent.
    if state.settings.is_remote and not state.settings.openrouter_zdr:
        return {"data": []}
    return {"data": [state.model_card.endpoint(state.generations, state.readiness)]}


@router.get("/providers", summary="Who serves models: this server")
async def list_openrouter_providers() -> dict[str, Any]:
    unknown = ("privacy_policy_url", "terms_of_service_url", "status_page_url", "headquarters", "datacenters")
    return {"data": [{"name": naming.PROVIDER, "slug": naming.PROVIDER, **dict.fromkeys(unknown)}]}


def _card(request: Request, author: str, slug: str) -> ModelCard:
    names: ModelNames = request.app.state.model_names
    names.check(f"{author}/{slug}")
    card: ModelCard = request.app.state.model_card
    return card


def _holds(wanted: str | None, available: Iterable[str]) -> bool:
    return wanted is None or {word.strip() for word in wanted.split(",") if word.strip()} <= set(available)


def _percentiles(values: Iterable[float]) -> dict[str, float] | None:
    """None without any value."""
    known = list(values)
    if not known:
        return None
    cuts = statistics.quantiles(known, n=100, method="inclusive") if len(known) > 1 else known * 99
    return {f"p{percent}": cuts[percent - 1] for percent in (50, 75, 90, 99)}


def _quantization(profile: Profile) -> str:
    """How the weights are held, in OpenRouter's words."""
    asked = str(profile.engine.get("quantization") or "")
    dtypes = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32"}
    if asked:
        return next((word for word in ("fp8", "int8", "int4") if asked.startswith(word)), "unknown")
    return dtypes.get(str(profile.engine.get("dtype")), "unknown")
