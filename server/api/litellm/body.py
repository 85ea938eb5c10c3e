"""The body that a LiteLLM proxy sends."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from server.api.messages import WireModel
from server.api.policy import PolicyOptions, ScoresWanted

METADATA_PREFIXES = ("litellm_", "request_", "user_api_key_")
"""How LiteLLM begins the names of what it tells about a call; a newer one may tell more."""

MAX_LEVELS = 100
"""Lists and objects within each other."""


class AdditionalParameters(BaseModel):
    """What the proxy's operator configured; fields with other names are other guardrails'."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True)

    policy: PolicyOptions | None = None
    category_scores: ScoresWanted = None


class GuardrailRequest(WireModel):
    input_type: Literal["request", "response"]
    texts: list[str] | None = Field(None, fail_fast=True)
    images: list[str] | None = Field(None, fail_fast=True, description="data: URLs, or base64 alone.")
    structured_messages: list[dict[str, Any]] | None = Field(
        None, fail_fast=True, description="The conversation, in the format of chat completions."
    )
    tool_calls: list[dict[str, Any]] | None = Field(None, fail_fast=True)
    tools: list[Any] | None = Field(None, description="Definitions of tools. They are not judged.")
    additional_provider_specific_params: AdditionalParameters | None = None
    model: str | None = Field(None, description="The guarded model, whatever it is called. Ignored.")

    @field_validator("structured_messages", "tool_calls")
    @classmethod
    def _refuse_what_is_too_deep(cls, value: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        if extent(value)[0] > MAX_LEVELS:
            raise ValueError(f"its lists and objects are nested more than {MAX_LEVELS} levels deep")
        return value

    @model_validator(mode="before")
    @classmethod
    def _ignore_metadata(cls, body: dict[str, Any]) -> dict[str, Any]:
        """Versions of LiteLLM tell more or less. What could hold content is refused until it is known."""
        return {
            name: value
            for name, value in body.items()
            if name in cls.model_fields
            or not (name.startswith(METADATA_PREFIXES) or value in (None, [], {}, "") or isinstance(value, int | float))
        }


def extent(value: Any) -> tuple[int, int]:
    """Levels of lists and objects in `value`, and characters of its texts and keys."""
    levels, characters, level = 0, 0, [value]
    while level:
        below = list[Any]()
        for item in level:
            if isinstance(item, str):
                characters += len(item)
            elif isinstance(item, list):
                below += item
            elif isinstance(item, dict):
                below += [*item, *item.values()]
        levels, level = levels + 1, below
    return levels, characters
