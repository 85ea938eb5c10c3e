"""The body that a LiteLLM proxy sends."""

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from server.api.policy import PolicyOptions, ScoresWanted
from server.api.wire import WireModel

METADATA_PREFIXES = ("litellm_", "request_", "user_api_key_")
"""Prefixes of the fields in which LiteLLM describes a call. Newer versions may add fields."""


class AdditionalParameters(WireModel):
    """Settings of the proxy's operator. Fields with other names belong to other guardrails."""

    model_config = ConfigDict(extra="ignore")

    policy: PolicyOptions | None = None
    category_scores: ScoresWanted = None


class GuardrailRequest(WireModel):
    input_type: Literal["request", "response"]
    texts: list[str] | None = Field(None, fail_fast=True)
    images: list[str] | None = Field(None, fail_fast=True, description="data: URLs, or plain base64.")
    structured_messages: list[dict[str, Any]] | None = Field(
        None, fail_fast=True, description="The conversation, in the format of chat completions."
    )
    tool_calls: list[dict[str, Any]] | None = Field(None, fail_fast=True)
    tools: list[Any] | None = Field(None, description="Tool definitions. Not judged.")
    additional_provider_specific_params: AdditionalParameters | None = None
    model: str | None = Field(None, description="The name of the guarded model. Ignored.")

    @model_validator(mode="before")
    @classmethod
    def _ignore_metadata(cls, body: dict[str, Any]) -> dict[str, Any]:
        """The fields differ between versions of LiteLLM. An unknown field that could hold content is refused."""
        return {
            name: value
            for name, value in body.items()
            if name in cls.model_fields
            or not (name.startswith(METADATA_PREFIXES) or value in (None, [], {}, "") or isinstance(value, int | float))
        }
