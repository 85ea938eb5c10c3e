"""OpenAI's answers, and those of others that stand beside them below /v1."""

from typing import Annotated, Any, Literal

from pydantic import Field, RootModel, WithJsonSchema

from server.api.replies.base import Count, EmptyList, Guard, Moment, ReplyModel
from server.domain.taxonomy import OPENAI_CATEGORIES

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


class ErrorDetail(ReplyModel):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(ReplyModel):
    """OpenAI's error."""

    error: ErrorDetail


# --- Moderations -----------------------------------------------------------------------------------------


class ModerationResult(ReplyModel):
    flagged: bool
    categories: Annotated[dict[str, bool], _by_category({"type": "boolean"})]
    category_scores: Annotated[dict[str, float], _by_category(_SCORE)]
    category_applied_input_types: Annotated[dict[str, list[str]], _by_category(_KINDS)]
    guard: Guard


class InputModeration(ReplyModel):
    """OpenAI's answer, to `input`: a result for each text."""

    id: str
    model: str
    results: Annotated[list[ModerationResult], Field(min_length=1)]


class LlamaModerationResult(ReplyModel):
    flagged: bool
    flagged_categories: list[str]
    guard: Guard


class LlamaModeration(ReplyModel):
    """The Llama API's answer, to `messages`: one result."""

    model: str
    results: Annotated[list[LlamaModerationResult], Field(min_length=1, max_length=1)]


class Moderation(RootModel[InputModeration | LlamaModeration]):
    """In the dialect that was asked in."""


# --- Chat completions ------------------------------------------------------------------------------------


class BareToken(ReplyModel):
    token: str
    logprob: Annotated[float, Field(le=0)]
    bytes: list[Annotated[int, Field(ge=0, le=255)]]


class TokenLogprob(BareToken):
    top_logprobs: Annotated[list[BareToken], Field(max_length=20)]


class ChatLogprobs(ReplyModel):
    content: list[TokenLogprob]
    refusal: None


class ChatReplyMessage(ReplyModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(ReplyModel):
    """`length`: the bound on tokens left codes out. The verdict itself is never cut."""

    index: Count
    message: ChatReplyMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class PromptTokensDetails(ReplyModel):
    cached_tokens: Count
    audio_tokens: Literal[0]


class CompletionTokensDetails(ReplyModel):
    reasoning_tokens: Literal[0]
    audio_tokens: Literal[0]
    accepted_prediction_tokens: Literal[0]
    rejected_prediction_tokens: Literal[0]


class ChatUsage(ReplyModel):
    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class CompletionHead(ReplyModel):
    """What a completion holds in either dialect, beside choices and usage."""

    id: str
    object: Literal["chat.completion"]
    created: Moment
    model: str
    system_fingerprint: str
    guard: Guard


class ChatCompletion(CompletionHead):
    choices: Annotated[list[ChatChoice], Field(min_length=1, max_length=128)]
    usage: ChatUsage


# --- Responses -------------------------------------------------------------------------------------------


class OutputText(ReplyModel):
    type: Literal["output_text"]
    text: str
    annotations: EmptyList
    logprobs: list[TokenLogprob]


class OutputMessage(ReplyModel):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: Literal["completed", "incomplete"]
    content: Annotated[list[OutputText], Field(min_length=1, max_length=1)]


class CachedInput(ReplyModel):
    cached_tokens: Count
    cache_write_tokens: Literal[0]


class OutputTokensDetails(ReplyModel):
    reasoning_tokens: Literal[0]


class ResponseUsage(ReplyModel):
    input_tokens: Count
    input_tokens_details: CachedInput
    output_tokens: Count
    output_tokens_details: OutputTokensDetails
    total_tokens: Count


class IncompleteDetails(ReplyModel):
    reason: Literal["max_output_tokens"]


class PlainFormat(ReplyModel):
    type: Literal["text"]


class TextOptions(ReplyModel):
    format: PlainFormat


class Response(ReplyModel):
    """Whatever is null or constant is what a verdict has no use for. `metadata` is the caller's own."""

    id: str
    object: Literal["response"]
    created_at: Moment
    completed_at: Moment | None
    status: Literal["completed", "incomplete"]
    error: None
    incomplete_details: IncompleteDetails | None
    model: str
    instructions: str | None
    output: Annotated[list[OutputMessage], Field(min_length=1, max_length=1)]
    output_text: str
    usage: ResponseUsage
    metadata: dict[str, Any]
    max_output_tokens: Count | None
    top_logprobs: Annotated[int, Field(ge=0, le=20)]
    background: Literal[False]
    store: Literal[False]
    previous_response_id: None
    parallel_tool_calls: Literal[False]
    tool_choice: Literal["none"]
    tools: EmptyList
    text: TextOptions
    temperature: None
    top_p: None
    truncation: Literal["disabled"]
    guard: Guard


# --- Models ----------------------------------------------------------------------------------------------


class Model(ReplyModel):
    id: str
    object: Literal["model"]
    created: Moment
    owned_by: str
    context_length: Count


class ModelList(ReplyModel):
    object: Literal["list"]
    data: list[Model]
