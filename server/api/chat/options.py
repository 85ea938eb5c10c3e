"""Options of chat completions that affect how text is generated or stored. A verdict is decoded greedily and nothing is
stored, so they change nothing. Only their types are checked.
"""

from typing import Any

from pydantic import Field, field_validator

from server.api.wire import Object, WireModel


class ModerationMode(WireModel):
    mode: str

    @field_validator("mode")
    @classmethod
    def _refuse_blocking(cls, mode: str) -> str:
        if mode != "score":
            raise ValueError("only the mode 'score' is supported, because this server never blocks a request itself")
        return mode


class InlineModerationPolicy(WireModel):
    input: ModerationMode | None = None
    output: ModerationMode | None = None


class InlineModeration(WireModel):
    model: str
    policy: InlineModerationPolicy | None = None


class IgnoredOptions(WireModel):
    """Parameters of OpenAI's and OpenRouter's chat completions that this server accepts and ignores."""

    audio: Object | None = None
    cache_control: Object | None = None
    debug: Object | None = None
    frequency_penalty: float | None = None
    image_config: Object | None = None
    include_reasoning: bool | None = None
    logit_bias: Object | None = None
    metadata: Object | None = None
    min_p: float | None = None
    modalities: list[str] | None = Field(None, description="Must contain `text`.")
    moderation: InlineModeration | None = Field(None, description="Ignored: the reply itself is the verdict.")
    parallel_tool_calls: bool | None = None
    plugins: list[Any] | None = None
    prediction: Object | None = None
    presence_penalty: float | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Object | None = None
    prompt_cache_retention: str | None = None
    reasoning: Object | None = None
    reasoning_effort: str | None = None
    repetition_penalty: float | None = None
    route: str | None = None
    safety_identifier: str | None = None
    seed: int | None = None
    service_tier: str | None = None
    session_id: str | None = None
    stop_server_tools_when: list[Any] | None = None
    store: bool | None = None
    temperature: float | None = None
    top_a: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    trace: Object | None = None
    transforms: list[str] | None = None
    usage: Object | None = None
    user: str | None = None
    verbosity: str | None = None
    web_search_options: Object | None = None

    @field_validator("modalities")
    @classmethod
    def _refuse_all_but_text(cls, modalities: list[str] | None) -> list[str] | None:
        if modalities and "text" not in modalities:
            raise ValueError("it must contain 'text', because a verdict is text")
        return modalities
