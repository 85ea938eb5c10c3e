"""The common parts of every dialect's completions."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field

from server.api.chat import logprobs
from server.api.chat.judging import Judged
from server.api.chat.logprobs import TokenLogprob
from server.api.chat.structured import Place, Structured
from server.api.detail import Guard
from server.api.http.ids import new_id
from server.api.http.shapes import Closed, Count, Moment
from server.domain.verdict import Verdict


class ChatLogprobs(Closed):
    content: list[TokenLogprob]
    refusal: None


class CalledFunction(Closed):
    """`arguments` are JSON in the schema of the function."""

    name: str
    arguments: str


class ReplyToolCall(Closed):
    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatReplyMessage(Closed):
    """`content` is null if the verdict is in a call, because the request forced one."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: NotRequired[Annotated[list[ReplyToolCall], Field(min_length=1, max_length=1)]]
    function_call: NotRequired[CalledFunction]


class ChatChoice(Closed):
    """`finish_reason` is `length` if the token limit left codes out. The verdict itself is never cut.

    It is `tool_calls` if the request asked for some call. As in OpenAI's API it is `stop` if the request named the
    function.
    """

    index: Count
    message: ChatReplyMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class PromptTokensDetails(Closed):
    cached_tokens: Count
    audio_tokens: Literal[0]


class CompletionTokensDetails(Closed):
    reasoning_tokens: Literal[0]
    audio_tokens: Literal[0]
    accepted_prediction_tokens: Literal[0]
    rejected_prediction_tokens: Literal[0]


class ChatUsage(Closed):
    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class CompletionHead(Closed):
    """The fields that a completion has in every dialect, in addition to its choices and usage."""

    id: str
    object: Literal["chat.completion"]
    created: Moment
    model: str
    system_fingerprint: str
    guard: Guard


def choices(judged: Judged, number: int | None) -> list[ChatChoice]:
    """`number` copies of the one answer."""
    answer, structured = judged.answer, judged.structured
    spelt: ChatLogprobs | None = None
    if answer.tokens is not None and structured is None:
        spelt = {"content": [*map(logprobs.entry, answer.tokens)], "refusal": None}
    return [
        {
            "index": index,
            "message": _message(answer.text if structured is None else structured),
            "logprobs": spelt,
            "finish_reason": ("length" if answer.cut else "stop") if structured is None else _reason(structured),
        }
        for index in range(number or 1)
    ]


def _message(answer: str | Structured) -> ChatReplyMessage:
    if isinstance(answer, str):
        return {"role": "assistant", "content": answer, "refusal": None}
    called: CalledFunction = {"name": answer.wanted.function, "arguments": answer.text}
    match answer.wanted.place:
        case Place.TEXT:
            return {"role": "assistant", "content": answer.text, "refusal": None}
        case Place.TOOL_CALL:
            call: ReplyToolCall = {"id": new_id("call_"), "type": "function", "function": called}
            return {"role": "assistant", "content": None, "refusal": None, "tool_calls": [call]}
        case Place.FUNCTION_CALL:
            return {"role": "assistant", "content": None, "refusal": None, "function_call": called}


def _reason(answer: Structured) -> Literal["stop", "tool_calls"]:
    return "tool_calls" if answer.wanted.place is Place.TOOL_CALL and not answer.wanted.by_name else "stop"


def deltas(message: ChatReplyMessage) -> list[dict[str, Any]]:
    """The content or the call of a message, as the chunks of a stream bring it."""
    if "tool_calls" in message:
        (call,) = message["tool_calls"]
        begun = {"index": 0, **call, "function": {**call["function"], "arguments": ""}}
        rest = {"index": 0, "function": {"arguments": call["function"]["arguments"]}}
        return [{"tool_calls": [begun]}, {"tool_calls": [rest]}]
    if "function_call" in message:
        return [{"function_call": message["function_call"]}]
    return [{"content": message["content"]}]


def usage(verdict: Verdict, token_limit: int | None) -> ChatUsage:
    """Tokens of the one verdict, however many choices repeat it, and at most `token_limit` completion tokens."""
    completion = verdict.completion
    completion_tokens = min(completion.completion_tokens, token_limit or completion.completion_tokens)
    return {
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": completion.prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": completion.cached_tokens, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def total(usages: Sequence[ChatUsage]) -> ChatUsage:
    """The tokens of several verdicts."""
    first, *_ = usages
    return {
        **first,
        "prompt_tokens": sum(each["prompt_tokens"] for each in usages),
        "completion_tokens": sum(each["completion_tokens"] for each in usages),
        "total_tokens": sum(each["total_tokens"] for each in usages),
        "prompt_tokens_details": {
            "cached_tokens": sum(each["prompt_tokens_details"]["cached_tokens"] for each in usages),
            "audio_tokens": 0,
        },
    }
