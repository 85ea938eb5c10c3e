"""The Llama API's words for moderations: its messages, and results that name slugs."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from server.api.detail import verdict_detail
from server.api.openai.chat import ChatMessage
from server.domain.conversation import Conversation, Message
from server.domain.verdict import Verdict


class LlamaMessage(ChatMessage):
    """As in chat completions; an assistant's content may also be one text part without a list around it."""

    stop_reason: Literal["stop", "tool_calls", "length"] | None = Field(None, description="Accepted and ignored.")

    @model_validator(mode="before")
    @classmethod
    def _list_a_single_part(cls, message: Any) -> Any:
        if isinstance(message, dict) and isinstance(message.get("content"), dict):
            return {**message, "content": [message["content"]]}
        return message


def conversation(messages: Sequence[LlamaMessage]) -> Conversation:
    return Conversation.from_messages([Message(message.role, message.parts(i)) for i, message in enumerate(messages)])


def result(verdict: Verdict) -> dict[str, Any]:
    """The one entry of `results`: the verdict on the last message. A caller's own category has no slug but its code."""
    taxonomy = verdict.completion.taxonomy
    slugs = [code if taxonomy.own else taxonomy[code].slug or code for code in verdict.categories]
    return {"flagged": verdict.unsafe, "flagged_categories": slugs, "guard": verdict_detail(verdict)}
