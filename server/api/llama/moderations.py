"""Moderations in the Llama API's format: its messages, and results that name categories by slug."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from server.api.detail import Guard, verdict_detail
from server.api.http.shapes import Closed
from server.api.messages import ChatMessage
from server.domain.conversation import Conversation, Message
from server.domain.verdict import Verdict


class LlamaMessage(ChatMessage):
    """As in chat completions, but an assistant's content may also be one text part without a list around it."""

    stop_reason: Literal["stop", "tool_calls", "length"] | None = Field(None, description="Accepted and ignored.")

    @model_validator(mode="before")
    @classmethod
    def _list_a_single_part(cls, message: Any) -> Any:
        if isinstance(message, dict) and isinstance(content := message.get("content"), dict) and content:
            return {**message, "content": [content]}
        return message


Messages = Annotated[list[LlamaMessage], Field(min_length=1, fail_fast=True)]


class LlamaModerationResult(Closed):
    flagged: bool
    flagged_categories: list[str]
    guard: Guard


class LlamaModeration(Closed):
    """The Llama API's reply to `messages`: one result."""

    model: str
    results: Annotated[list[LlamaModerationResult], Field(min_length=1, max_length=1)]


def conversation(messages: Sequence[LlamaMessage]) -> Conversation:
    return Conversation.from_messages([Message(message.role, message.parts(i)) for i, message in enumerate(messages)])


def document(verdict: Verdict, model: str) -> LlamaModeration:
    """The verdict on the last message. A caller's own category has no slug, so its code stands there."""
    taxonomy = verdict.completion.taxonomy
    slugs = [code if taxonomy.own else taxonomy[code].slug or code for code in verdict.categories]
    result: LlamaModerationResult = {
        "flagged": verdict.unsafe,
        "flagged_categories": slugs,
        "guard": verdict_detail(verdict),
    }
    return {"model": model, "results": [result]}
