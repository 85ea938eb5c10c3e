"""The served model in OpenRouter's terms: its inputs, its cost, and the performance of its one endpoint."""

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from server.api.chat.request import ChatRequest
from server.api.http.shapes import Closed, Count, EmptyObject, Moment
from server.api.http.state import Served
from server.api.names import PROVIDER, ModelNames
from server.api.openrouter.generations import Generations
from server.api.openrouter.money import ZeroDollars
from server.checkpoints.profile import Profile

PARAMETERS = frozenset({"logprobs", "max_completion_tokens", "max_tokens", "seed", "stop", "top_logprobs"})
"""OpenRouter's parameters that can have a meaning for a verdict. The card lists those that chat completions read."""

LLAMA_4_VOCABULARY = 202_048

HALF_AN_HOUR_S = 1800
A_DAY_S = 86_400


MODERATOR = (
    "A moderation model: it answers whether the last message of a conversation is safe, or unsafe and by which hazard"
    " categories."
)
STAND_IN = "A stand-in for a moderation model, for trials and tests. It is not a moderator."


Modality = Literal["text", "image"]
Quantization = Literal["fp8", "int8", "int4", "bf16", "fp16", "fp32", "unknown"]


class Architecture(Closed):
    modality: Literal["text->text", "text+image->text"]
    input_modalities: list[Modality]
    output_modalities: list[Literal["text"]]
    tokenizer: Literal["Llama4", "Other"]
    instruct_type: None


class Pricing(Closed):
    """US dollars. This server bills nobody."""

    prompt: ZeroDollars
    completion: ZeroDollars
    request: ZeroDollars
    image: ZeroDollars


class TopProvider(Closed):
    context_length: Count
    max_completion_tokens: None
    is_moderated: Literal[False]


class ModelLinks(Closed):
    details: str


class ModelHead(Closed):
    """The fields of a model in every reply that shows one."""

    id: str
    name: str
    created: Moment
    description: str
    architecture: Architecture


class OpenRouterModel(ModelHead):
    canonical_slug: str
    hugging_face_id: str | None
    context_length: Count
    pricing: Pricing
    top_provider: TopProvider
    per_request_limits: None
    supported_parameters: list[str]
    default_parameters: None
    supported_voices: None
    knowledge_cutoff: None
    expiration_date: None
    links: ModelLinks


class Percentiles(Closed):
    p50: float
    p75: float
    p90: float
    p99: float


class ToolChoices(Closed):
    auto: Literal[False]
    function: Literal[False]
    none: Literal[False]
    required: Literal[False]


class ServedEndpoint(Closed):
    """Latency in milliseconds, throughput in tokens per second, uptime in percent. Null without recent requests."""

    name: str
    tag: str
    provider_name: str
    model_id: str
    model_name: str
    context_length: Count
    max_prompt_tokens: None
    max_completion_tokens: None
    pricing: Pricing
    quantization: Quantization
    supported_parameters: list[str]
    native_tools: EmptyObject
    service_tier: None
    supports_diarization: Literal[False]
    supports_tool_choice: ToolChoices
    supports_implicit_caching: bool
    status: Literal[0, -1]
    uptime_last_5m: float | None
    uptime_last_30m: float | None
    uptime_last_1d: float | None
    latency_last_30m: Percentiles | None
    throughput_last_30m: Percentiles | None


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Facts of the served model in OpenRouter's terms. `sees` says whether it sees pictures."""

    profile: Profile
    names: ModelNames
    sees: bool

    @classmethod
    def of(cls, here: Served) -> "ModelCard":
        return cls(here.profile, here.service.names, here.service.sight.sees)

    @property
    def slug(self) -> str:
        return self.names.slug

    @property
    def name(self) -> str:
        return self.names.id.rpartition("/")[2]

    @property
    def inputs(self) -> list[Modality]:
        return ["text", "image"] if self.sees else ["text"]

    @property
    def parameters(self) -> list[str]:
        return sorted(PARAMETERS & set(ChatRequest.model_fields))

    @property
    def document(self) -> OpenRouterModel:
        profile = self.profile
        return {
            **self.head,
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

    def endpoint(self, generations: Generations, *, ready: bool) -> ServedEndpoint:
        """This server as a provider, with figures that it measured. A figure that it does not have is null."""
        profile = self.profile
        recent = list(generations.since(time.time() - HALF_AN_HOUR_S))
        return {
            "name": f"{PROVIDER} | {self.slug}",
            "tag": PROVIDER,
            "provider_name": PROVIDER,
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
            "supports_tool_choice": {"auto": False, "function": False, "none": False, "required": False},
            "supports_implicit_caching": bool(profile.engine.get("enable_prefix_caching", True)),
            "status": 0 if ready else -1,
            "uptime_last_5m": generations.uptime(300),
            "uptime_last_30m": generations.uptime(HALF_AN_HOUR_S),
            "uptime_last_1d": generations.uptime(A_DAY_S),
            "latency_last_30m": _percentiles(generation.latency_s * 1000 for generation in recent),
            "throughput_last_30m": _percentiles(
                generation.completion_tokens / generation.latency_s for generation in recent if generation.latency_s
            ),
        }

    @property
    def head(self) -> ModelHead:
        return {
            "id": self.slug,
            "name": self.name,
            "created": self.names.created,
            "description": STAND_IN if self.profile.stand_in else MODERATOR,
            "architecture": {
                "modality": "text+image->text" if self.sees else "text->text",
                "input_modalities": self.inputs,
                "output_modalities": ["text"],
                "tokenizer": "Llama4" if self.profile.vocabulary_size == LLAMA_4_VOCABULARY else "Other",
                "instruct_type": None,
            },
        }


PRICING: Pricing = {"prompt": "0", "completion": "0", "request": "0", "image": "0"}
"""US dollars per unit. This server bills nobody."""


REDUCED: tuple[Quantization, ...] = ("fp8", "int8", "int4")


def _percentiles(values: Iterable[float]) -> Percentiles | None:
    """None if there are no values."""
    known = list(values)
    if not known:
        return None
    cuts = statistics.quantiles(known, n=100, method="inclusive") if len(known) > 1 else known * 99
    return {"p50": cuts[49], "p75": cuts[74], "p90": cuts[89], "p99": cuts[98]}


def _quantization(profile: Profile) -> Quantization:
    """The format of the weights, in OpenRouter's terms."""
    asked = str(profile.engine.get("quantization") or "")
    dtypes: dict[str, Quantization] = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32"}
    if asked:
        return next((word for word in REDUCED if asked.startswith(word)), "unknown")
    return dtypes.get(str(profile.engine.get("dtype")), "unknown")
