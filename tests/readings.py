"""What Llama Guard would be read to say, by the text that it wrote."""

from typing import Any

from server.domain.policy import Policy
from server.domain.verdict import Levels, Reading, Severity, Verdict, decide
from server.families.llama_guard.family import LlamaGuard

FAMILY = LlamaGuard()


def reading(text: str, policy: Policy, levels: Levels | None = None, listed: str | None = None, **more: Any) -> Reading:
    """`listed` is what the model writes when it is made to go on from its word for unsafe."""
    said = FAMILY.read(text, levels)
    decision = decide(said, policy)
    past_its_word = decision.unsafe and said.severity is Severity.SAFE
    return Reading(said, decision, FAMILY.read(listed) if past_its_word and listed is not None else None, **more)


def text_of(verdict: Verdict) -> str:
    """The answer on the wire."""
    return FAMILY.write(verdict).text
