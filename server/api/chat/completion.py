"""The common parts of every dialect's completions."""

from typing import Literal

from server.api.chat import logprobs
from server.api.chat.judging import Judged
from server.api.chat.logprobs import TokenLogprob
from server.api.detail import Guard
from server.api.http.shapes import Closed, Count, Moment
from server.domain.verdict import Verdict


class ChatLogprobs(Closed):
    content: list[TokenLogprob]
    refusal: None


class ChatReplyMessage(Closed):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Closed):
    """`finish_reason` is `length` if the token limit left codes out. The verdict itself is never cut."""

    index: Count
    message: ChatReplyMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


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
    answer = judged.answer
    spelt: ChatLogprobs | None = (
        None if answer.tokens is None else {"content": [*map(logprobs.entry, answer.tokens)], "refusal": None}
    )
    return [
        {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": spelt,
            "finish_reason": "length" if answer.cut else "stop",
        }
        for index in range(number or 1)
    ]


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
