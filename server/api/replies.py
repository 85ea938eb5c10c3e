"""What answers look like: JSON schemas for the OpenAPI document. Answers themselves are made without them.

tests/api/test_schemathesis.py holds what is served to these.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, WithJsonSchema
from pydantic.json_schema import models_json_schema

from server.profile import OPENAI_CATEGORIES

_REFERENCE = "#/components/schemas/{model}"

_CATEGORIES = sorted(OPENAI_CATEGORIES)


def _by_category(value: dict[str, Any]) -> WithJsonSchema:
    """An object that has each of OpenAI's categories and nothing else."""
    return WithJsonSchema(
        {
            "type": "object",
            "properties": dict.fromkeys(_CATEGORIES, value),
            "required": _CATEGORIES,
            "additionalProperties": False,
        }
    )


_SCORE: dict[str, Any] = {"type": "number", "minimum": 0, "maximum": 1}
_KINDS: dict[str, Any] = {"type": "array", "items": {"enum": ["text", "image"]}}


class ReplyModel(BaseModel):
    """Base of all answers: a key without a default is always there, and there are no others."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetail(ReplyModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(ReplyModel):
    """OpenAI's error."""

    error: ErrorDetail


class OpenRouterErrorMetadata(ReplyModel):
    error_type: str
    param: str = ""


class OpenRouterErrorDetail(ReplyModel):
    code: int
    message: str
    metadata: OpenRouterErrorMetadata


class OpenRouterError(ReplyModel):
    """OpenRouter's error, whose code is the status."""

    error: OpenRouterErrorDetail


class GuardUsage(ReplyModel):
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    images: int
    frames: int
    tiles: int


class GuardTiming(ReplyModel):
    queued: float
    computed: float


class Guard(ReplyModel):
    """The native verdict."""

    verdict: Literal["safe", "unsafe"]
    p_unsafe: float | None
    threshold: float
    verdict_mass: float | None
    categories: list[str]
    category_scores: dict[str, float] | None
    category_score_method: Literal["written_list", "first_code", "upper_bound"] | None
    raw_text: str
    finish_reason: Literal["stop"]
    backend: str
    usage: GuardUsage
    timing: GuardTiming


class ModerationResult(ReplyModel):
    flagged: bool
    categories: Annotated[dict[str, bool], _by_category({"type": "boolean"})]
    category_scores: Annotated[dict[str, float], _by_category(_SCORE)]
    category_applied_input_types: Annotated[dict[str, list[str]], _by_category(_KINDS)]
    guard: Guard


class Moderation(ReplyModel):
    id: str
    model: str
    results: list[ModerationResult]


class ChatReplyMessage(ReplyModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(ReplyModel):
    index: int
    message: ChatReplyMessage
    logprobs: None
    finish_reason: Literal["stop"]


class PromptTokensDetails(ReplyModel):
    cached_tokens: int
    audio_tokens: int


class CompletionTokensDetails(ReplyModel):
    reasoning_tokens: int
    audio_tokens: int
    accepted_prediction_tokens: int
    rejected_prediction_tokens: int


class ChatUsage(ReplyModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class ChatCompletion(ReplyModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: ChatUsage
    guard: Guard


class Model(ReplyModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    context_length: int


class ModelList(ReplyModel):
    object: Literal["list"]
    data: list[Model]


class Health(ReplyModel):
    status: Literal["alive", "dead"]


class Ready(ReplyModel):
    status: Literal["ready", "not ready"]
    reason: str = ""


REPLIES: dict[tuple[str, str], type[ReplyModel]] = {
    ("POST", "/v1/moderations"): Moderation,
    ("POST", "/v1/chat/completions"): ChatCompletion,
    ("GET", "/v1/models"): ModelList,
    ("GET", "/v1/models/{name}"): Model,
    ("GET", "/health"): Health,
    ("GET", "/ready"): Ready,
}
"""What each route that answers in JSON answers with when all is well."""

STATES = frozenset({"/health", "/ready"})
"""Routes whose 503 is no error but the same answer."""

OPENROUTER_PREFIX = "/api/v1/"


def describe(document: dict[str, Any]) -> None:
    """Say in `document` what every answer looks like, beside the examples that stand there.

    Errors that no route names are its `default`.
    """
    models: set[type[BaseModel]] = {*REPLIES.values(), Error, OpenRouterError}
    _, schemas = models_json_schema([(model, "validation") for model in models], ref_template=_REFERENCE)
    document.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
    for path, operations in document["paths"].items():
        error = OpenRouterError if path.startswith(OPENROUTER_PREFIX) else Error
        for method, operation in operations.items():
            reply = REPLIES.get((method.upper(), path))
            responses = operation["responses"]
            if reply is not None:
                _add_schema(responses, "200", "What was asked for", reply)
            if path in STATES and reply is not None:
                _add_schema(responses, "503", "Not so", reply)
            for status in (*responses, "default"):
                if status == "default" or (int(status) >= 400 and not (path in STATES and status == "503")):
                    _add_schema(responses, status, "Any other error", error)


def _add_schema(responses: dict[str, Any], status: str, description: str, model: type[BaseModel]) -> None:
    """The examples are shared between routes, so they are copied and not written to."""
    response = responses.get(status, {"description": description})
    content = response.get("content", {})
    schema = {"schema": {"$ref": _REFERENCE.format(model=model.__name__)}}
    responses[status] = {
        **response,
        "content": {**content, "application/json": {**content.get("application/json", {}), **schema}},
    }
