"""OpenRouter's answers below /api/v1. Null is what this server does not do, or does not keep."""

from typing import Annotated, Literal

from pydantic import Field

from server.api.replies.base import ABSENT, Count, EmptyList, EmptyObject, Moment, ReplyModel
from server.api.replies.openai import ChatChoice, ChatUsage, CompletionHead
from server.domain.caller import Scope

Dollars = Annotated[float, Field(ge=0)]
Milliseconds = Annotated[float, Field(ge=0)]
Nothing = Annotated[float, Field(ge=0, le=0)]
ZeroDollars = Literal["0"]
Modality = Literal["text", "image"]


class OpenRouterErrorMetadata(ReplyModel):
    """OpenRouter's word for the kind, and this server's code and the field at fault where there are such."""

    error_type: str
    code: str = ABSENT
    param: str = ABSENT


class OpenRouterErrorDetail(ReplyModel):
    code: int
    message: str
    metadata: OpenRouterErrorMetadata


class OpenRouterError(ReplyModel):
    """OpenRouter's error, whose code is the status."""

    error: OpenRouterErrorDetail


# --- Chat completions ------------------------------------------------------------------------------------


class OpenRouterChoice(ChatChoice):
    native_finish_reason: Literal["stop"]


class CostDetails(ReplyModel):
    upstream_inference_cost: None
    upstream_inference_prompt_cost: Nothing
    upstream_inference_completions_cost: Nothing


class OpenRouterUsage(ChatUsage):
    """How the cost of a remote model is made up is not known."""

    cost: Dollars
    is_byok: Literal[False]
    cost_details: CostDetails | None


class OpenRouterCompletion(CompletionHead):
    provider: str
    service_tier: None
    choices: Annotated[list[OpenRouterChoice], Field(min_length=1, max_length=128)]
    usage: OpenRouterUsage


class Generation(ReplyModel):
    id: str
    request_id: str
    created_at: str
    model: str
    provider_name: str
    api_type: Literal["completions"]
    streamed: bool
    cancelled: Literal[False]
    finish_reason: Literal["stop", "length"]
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


class GenerationData(ReplyModel):
    data: Generation


# --- Models and who serves them --------------------------------------------------------------------------


class Architecture(ReplyModel):
    modality: Literal["text->text", "text+image->text"]
    input_modalities: list[Modality]
    output_modalities: list[Literal["text"]]
    tokenizer: Literal["Llama4", "Other"]
    instruct_type: None


class Pricing(ReplyModel):
    """US dollars. This server bills nobody."""

    prompt: ZeroDollars
    completion: ZeroDollars
    request: ZeroDollars
    image: ZeroDollars


class TopProvider(ReplyModel):
    context_length: Count
    max_completion_tokens: None
    is_moderated: Literal[False]


class ModelLinks(ReplyModel):
    details: str


class ModelHead(ReplyModel):
    """What is said of a model wherever it is shown."""

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


class OpenRouterModelData(ReplyModel):
    data: OpenRouterModel


class PageLinks(ReplyModel):
    next: None


class OpenRouterModelList(ReplyModel):
    data: Annotated[list[OpenRouterModel], Field(max_length=1)]
    total_count: Count
    links: PageLinks


class ModelCount(ReplyModel):
    count: Literal[0, 1]


class ModelCountData(ReplyModel):
    data: ModelCount


class Percentiles(ReplyModel):
    p50: float
    p75: float
    p90: float
    p99: float


class ToolChoices(ReplyModel):
    auto: Literal[False]
    function: Literal[False]
    none: Literal[False]
    required: Literal[False]


class ServedEndpoint(ReplyModel):
    """Latencies are milliseconds, throughput tokens a second, uptime percent; null where nothing was asked of late."""

    name: str
    tag: str
    provider_name: str
    model_id: str
    model_name: str
    context_length: Count
    max_prompt_tokens: None
    max_completion_tokens: None
    pricing: Pricing
    quantization: Literal["fp8", "int8", "int4", "bf16", "fp16", "fp32", "unknown"]
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


class ModelEndpoints(ModelHead):
    endpoints: Annotated[list[ServedEndpoint], Field(min_length=1, max_length=1)]


class ModelEndpointsData(ReplyModel):
    data: ModelEndpoints


class EndpointList(ReplyModel):
    data: list[ServedEndpoint]


class Provider(ReplyModel):
    name: str
    slug: str
    privacy_policy_url: None
    terms_of_service_url: None
    status_page_url: None
    headquarters: None
    datacenters: None


class ProviderList(ReplyModel):
    data: list[Provider]


# --- The caller's key ------------------------------------------------------------------------------------


class FreeRequests(ReplyModel):
    limit: Literal[0]
    remaining: Literal[0]
    used: Literal[0]


class KeyRateLimit(ReplyModel):
    """-1 is no limit."""

    requests: Annotated[int, Field(ge=-1)]
    interval: Literal["1m"]
    note: str


class KeyGuard(ReplyModel):
    """What the key may do in this server's own words."""

    scopes: list[Scope]
    never_remote: bool
    finished_prompts: bool
    requests_per_minute: Count | None
    tokens_per_minute: Count | None


class Key(ReplyModel):
    label: str
    creator_user_id: None
    organization_id: None
    workspace_id: None
    allowed_data_regions: list[Literal["global"]]
    limit: None
    limit_remaining: None
    limit_reset: None
    include_byok_in_limit: Literal[False]
    usage: Dollars
    usage_daily: Dollars
    usage_weekly: Dollars
    usage_monthly: Dollars
    byok_usage: Nothing
    byok_usage_daily: Nothing
    byok_usage_weekly: Nothing
    byok_usage_monthly: Nothing
    budgets: EmptyList
    effective_budget: None
    free_model_daily_requests: FreeRequests
    is_free_tier: Literal[False]
    is_management_key: Literal[False]
    is_provisioning_key: Literal[False]
    rate_limit: KeyRateLimit
    guard: KeyGuard


class KeyData(ReplyModel):
    data: Key


class Credits(ReplyModel):
    total_credits: Nothing
    total_usage: Dollars


class CreditsData(ReplyModel):
    data: Credits
