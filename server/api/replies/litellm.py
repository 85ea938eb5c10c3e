"""The guardrail's answer to a LiteLLM proxy."""

from typing import Literal

from server.api.replies.base import ABSENT, Guard, ReplyModel


class Guardrail(ReplyModel):
    """`NONE`: all of it is safe. There is a verdict for each turn and each loose text."""

    action: Literal["NONE", "BLOCKED"]
    blocked_reason: str = ABSENT
    guard: list[Guard]
