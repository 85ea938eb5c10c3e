"""The request of chat completions: OpenAI's, with OpenRouter's additions.

A field is read here, or accepted and ignored because it cannot change a verdict (options.py), or refused because it
could change one unnoticed or because to ignore it would mislead. docs/api-fields.md has the table.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from server.api.chat.logprobs import MAX_ALTERNATIVES
from server.api.chat.options import IgnoredOptions
from server.api.chat.structured import Place, Wanted, wanted_call, wanted_format
from server.api.messages import ChatMessage, StringOrObject, StringOrStrings
from server.api.names import ModelNames
from server.api.policy import PolicyOptions, ScoresWanted
from server.api.wire import Object, WireModel
from server.domain.conversation import Conversation, ImagePart, Message, Part, TextPart
from server.domain.errors import InvalidRequest
from server.families.base import Family, FinishedPrompt
from server.settings import Settings

MAX_CHOICES = 128
MAX_STOPS = 4


def bounded_stops(stop: str | list[str] | None) -> str | list[str] | None:
    """`stop` of a request. Raises ValueError, in words for the caller, for more than MAX_STOPS texts."""
    if isinstance(stop, list) and len(stop) > MAX_STOPS:
        raise ValueError(f"send at most {MAX_STOPS} texts")
    return stop


class StreamOptions(WireModel):
    include_usage: bool = False
    continuous_usage_stats: bool = Field(False, description="vLLM's: every chunk has the usage so far.")
    include_obfuscation: bool = Field(False, description="Accepted and ignored.")


class ProviderPreferences(WireModel):
    """OpenRouter's wishes for a provider. Here the operator chooses the provider; wishes for privacy are honoured."""

    zdr: bool | None = Field(None, description="True: only providers that keep no data (zero data retention).")
    data_collection: Literal["allow", "deny"] | None = None
    allow_fallbacks: bool | None = None
    enforce_distillable_text: bool | None = None
    ignore: list[str] | None = None
    max_price: Object | None = None
    only: list[str] | None = None
    order: list[str] | None = None
    preferred_max_latency: Any = None
    preferred_min_throughput: Any = None
    quantizations: list[str] | None = None
    require_parameters: bool | None = None
    sort: Any = None

    def stricter_than(self, settings: Settings) -> bool:
        """Whether this request wants more privacy than the remote backend is set up for."""
        keeps_data, collects_data = not settings.openrouter_zdr, settings.openrouter_data_collection != "deny"
        return bool(self.zdr and keeps_data) or bool(self.data_collection == "deny" and collects_data)


class ChatRequest(IgnoredOptions):
    messages: list[ChatMessage] = Field(min_length=1, fail_fast=True)
    model: str | None = None
    models: list[str] | None = Field(None, description="Other models that the caller accepts.")
    provider: ProviderPreferences | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="Number of choices. All are copies of one verdict.")
    max_tokens: int | None = Field(None, ge=0, description="Cuts the list of codes, never the verdict; 0 is no limit.")
    max_completion_tokens: int | None = Field(None, ge=0, description="The newer name of `max_tokens`.")
    stop: StringOrStrings | None = Field(None, description="Up to 4 texts. None may split a word or code of a verdict.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES, description="Needs `logprobs` to be true.")
    response_format: Object | None = Field(None, description="`json_object`, or a `json_schema` that holds a verdict.")
    tools: list[Any] | None = Field(None, description="Ignored, unless `tool_choice` forces a call.")
    tool_choice: StringOrObject | None = Field(None, description="A forced call gets the verdict as its arguments.")
    functions: list[Any] | None = Field(None, description="The older form of `tools`.")
    function_call: StringOrObject | None = Field(None, description="The older form of `tool_choice`.")
    policy: PolicyOptions | None = None
    category_scores: ScoresWanted = None

    @field_validator("stop")
    @classmethod
    def _bound_the_stops(cls, stop: str | list[str] | None) -> str | list[str] | None:
        return bounded_stops(stop)

    @field_validator("top_logprobs")
    @classmethod
    def _refuse_without_logprobs(cls, top_logprobs: int | None, info: ValidationInfo) -> int | None:
        if top_logprobs and not info.data.get("logprobs"):
            raise ValueError("it needs 'logprobs' to be true")
        return top_logprobs

    @property
    def stops(self) -> Sequence[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or ()

    @property
    def token_limit(self) -> int | None:
        """The smaller of both limits. Some clients send zero for no limit."""
        return min(filter(None, (self.max_tokens, self.max_completion_tokens)), default=None)

    def wanted(self) -> list[Wanted]:
        """The schemas of which the answer must obey one, none if it is plain text. Raises InvalidRequest."""
        if calls := wanted_call(self.tool_choice, self.tools or ()):
            return calls
        if calls := wanted_call(self.function_call, self.functions or (), "function_call", "functions"):
            return [replace(call, place=Place.FUNCTION_CALL) for call in calls]
        wanted = wanted_format(self.response_format, "response_format") if self.response_format else None
        return [] if wanted is None else [wanted]

    @cached_property
    def said(self) -> list[tuple[Part, ...]]:
        """The parts of each message."""
        return [message.parts(index) for index, message in enumerate(self.messages)]

    def conversation(self) -> Conversation:
        return Conversation.from_messages(
            [Message(message.role, parts) for message, parts in zip(self.messages, self.said, strict=True)]
        )

    def finished_prompt(self, family: Family) -> FinishedPrompt | None:
        """The finished Guard prompt, if the request is one message that is entirely such a prompt."""
        if len(self.messages) != 1 or self.messages[0].role != "user":
            return None
        (parts,) = self.said
        texts = [part.text for part in parts if isinstance(part, TextPart)]
        if len(texts) != 1:
            return None
        try:
            return family.finished_prompt(texts[0], [part for part in parts if isinstance(part, ImagePart)])
        except InvalidRequest as error:
            raise error.at("messages[0].content") from None

    def model_in(self, names: ModelNames) -> str | None:
        """The first requested model that is served here, or the first one if none is."""
        asked = [name for name in (self.model, *(self.models or ())) if name]
        return next(filter(names.knows, asked), asked[0] if asked else None)
