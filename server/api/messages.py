"""Messages in OpenAI's format, which other APIs copied: the fields of a message, and all texts and images in them."""

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from server.domain.conversation import ImagePart, Part, TextPart

IDENTIFIER = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""A plain name of a speaker or a function. Any other `name` is judged as a text."""

OPAQUE = re.compile(r"[A-Za-z0-9+/=_.:-]*")
"""A token of any length that a program made: an id, a signature, encrypted data. Anything else is judged as a text."""


class WireModel(BaseModel):
    """Base of all request bodies: unknown fields are refused, and types are not coerced."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Object = dict[str, Any]


# --- Content ---------------------------------------------------------------------------------------------


class TextContent(WireModel):
    type: Literal["text"]
    text: str
    cache_control: Object | None = Field(None, description="Accepted and ignored.")
    prompt_cache_breakpoint: Object | None = Field(None, description="Accepted and ignored.")


class ImageUrl(WireModel):
    url: str = Field(description="A data: URL (JPEG, PNG, WebP, GIF), or an http(s) URL if the operator allows it.")
    detail: Literal["auto", "low", "high", "original"] | None = Field(None, description="Accepted and ignored.")


class ImageContent(WireModel):
    type: Literal["image_url"]
    image_url: ImageUrl


class RefusalContent(WireModel):
    type: Literal["refusal"]
    refusal: str


# Branches of unions are named in <>, so that api/http/body.py can leave them out of the path of a fault.


def _part_kind(value: Any) -> str | None:
    return f"<{value['type']}>" if isinstance(value, dict) and isinstance(value.get("type"), str) else None


def _kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "<string>"
    if isinstance(value, list):
        return "<strings>" if value and isinstance(value[0], str) else "<parts>"
    return None


ContentPart = Annotated[
    Annotated[TextContent, Tag("<text>")]
    | Annotated[ImageContent, Tag("<image_url>")]
    | Annotated[RefusalContent, Tag("<refusal>")],
    Discriminator(_part_kind),
]
String = Annotated[str, Tag("<string>")]
# To report a million faults in a list would take seconds: the first one is enough.
Strings = Annotated[list[str], Field(fail_fast=True), Tag("<strings>")]
Parts = Annotated[list[ContentPart], Field(fail_fast=True), Tag("<parts>")]

StringOrParts = Annotated[
    String | Parts, Discriminator(lambda value: "<parts>" if isinstance(value, list) else _kind(value))
]
StringOrStrings = Annotated[
    String | Strings, Discriminator(lambda value: "<strings>" if isinstance(value, list) else _kind(value))
]
StringOrObject = Annotated[
    String | Annotated[Object, Tag("<object>")],
    Discriminator(lambda value: "<string>" if isinstance(value, str) else "<object>"),
]
StringOrStringsOrParts = Annotated[String | Strings | Parts, Discriminator(_kind)]


def to_parts(content: str | Sequence[TextContent | ImageContent | RefusalContent], param: str) -> tuple[Part, ...]:
    """The parts of a conversation. `param` is the path of `content` in the request, which errors and verdicts name."""
    if isinstance(content, str):
        return (TextPart(content, param),)
    return tuple(
        ImagePart(part.image_url.url, param=f"{param}[{index}].image_url.url")
        if isinstance(part, ImageContent)
        else TextPart(part.text if isinstance(part, TextContent) else part.refusal, f"{param}[{index}].{part.type}")
        for index, part in enumerate(content)
    )


# --- Messages --------------------------------------------------------------------------------------------


class FunctionCall(WireModel):
    name: str
    arguments: str


class ToolCall(WireModel):
    id: str | None = None
    index: int | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


class CustomCall(WireModel):
    name: str
    input: str


class CustomToolCall(WireModel):
    id: str | None = None
    index: int | None = None
    type: Literal["custom"]
    custom: CustomCall


AnyToolCall = Annotated[
    Annotated[ToolCall, Tag("<function>")] | Annotated[CustomToolCall, Tag("<custom>")],
    Discriminator(
        lambda value: "<custom>" if isinstance(value, dict) and value.get("type") == "custom" else "<function>"
    ),
]


class ReasoningDetail(WireModel):
    """A part of OpenRouter's record of a model's reasoning. Encrypted reasoning is not judged: nobody can read it."""

    type: Literal["reasoning.text", "reasoning.summary", "reasoning.encrypted"]
    text: str | None = None
    summary: str | None = None
    data: str | None = None
    signature: str | None = None
    id: str | None = None
    format: str | None = None
    index: int | None = None

    def asides(self) -> Iterator[tuple[str, str]]:
        """Fields that hold words in place of a program's tokens, and `data` that is not encrypted."""
        if self.data and (self.type != "reasoning.encrypted" or OPAQUE.fullmatch(self.data) is None):
            yield "data", self.data
        for field, value in (("signature", self.signature), ("id", self.id), ("format", self.format)):
            if value and OPAQUE.fullmatch(value) is None:
                yield field, value


class UrlCitation(WireModel):
    url: str
    title: str | None = None
    content: str | None = None
    start_index: int | None = None
    end_index: int | None = None


class Annotation(WireModel):
    type: Literal["url_citation"]
    url_citation: UrlCitation


class ChatMessage(WireModel):
    role: Literal["user", "assistant", "system", "developer", "tool", "function"]
    content: StringOrParts | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    reasoning_details: list[ReasoningDetail] | None = Field(None, fail_fast=True)
    images: list[ImageContent] | None = Field(None, fail_fast=True)
    annotations: list[Annotation] | None = Field(None, fail_fast=True)
    tool_calls: list[AnyToolCall] | None = Field(None, fail_fast=True)
    function_call: FunctionCall | None = None
    tool_call_id: str | None = None
    name: str | None = None
    model: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _skip_what_is_empty(cls, message: Any) -> Any:
        # OpenAI's SDK sends its own replies back with all of their fields, most of them null.
        if not isinstance(message, dict):
            return message
        return {
            name: value
            for name, value in message.items()
            if name in cls.model_fields or value not in (None, [], {}, "")
        }

    def parts(self, index: int) -> tuple[Part, ...]:
        """Everything in the message that is judged: thoughts, content, images, refusal, sources and calls."""
        path = f"messages[{index}]"
        content = to_parts(self.content, f"{path}.content") if self.content is not None else ()
        images = to_parts(self.images or (), f"{path}.images")
        said = (*self._asides(), *self._sources(), *self._calls())
        thoughts = (TextPart(text, f"{path}.{field}") for field, text in self._thoughts())
        return (*thoughts, *content, *images, *(TextPart(text, f"{path}.{field}") for field, text in said))

    def _thoughts(self) -> Iterator[tuple[str, str]]:
        """Fields and their texts."""
        whole = list(dict.fromkeys(filter(None, [self.reasoning, self.reasoning_content])))
        if whole:
            yield "reasoning" if self.reasoning else "reasoning_content", "\n".join(whole)
        details = [
            (f"reasoning_details[{index}].{field}", text)
            for index, detail in enumerate(self.reasoning_details or ())
            for field, text in (("text", detail.text), ("summary", detail.summary))
            if text and text not in whole
        ]
        # OpenRouter sends the same text twice, as a whole and in parts.
        if "".join(text for _, text in details) not in whole:
            yield from details

    def _asides(self) -> Iterator[tuple[str, str]]:
        """Texts outside of the content: a refusal, and words in place of a name or a program's token."""
        if self.refusal:
            yield "refusal", self.refusal
        if self.name and IDENTIFIER.fullmatch(self.name) is None:
            yield "name", self.name
        tokens = [("tool_call_id", self.tool_call_id), ("model", self.model)]
        tokens += [(f"tool_calls[{index}].id", call.id) for index, call in enumerate(self.tool_calls or ())]
        for field, token in tokens:
            if token and OPAQUE.fullmatch(token) is None:
                yield field, token
        for index, detail in enumerate(self.reasoning_details or ()):
            for field, words in detail.asides():
                yield f"reasoning_details[{index}].{field}", words

    def _sources(self) -> Iterator[tuple[str, str]]:
        for index, annotation in enumerate(self.annotations or ()):
            cited = annotation.url_citation
            yield f"annotations[{index}]", " ".join(filter(None, [cited.title, cited.url, cited.content]))

    def _calls(self) -> Iterator[tuple[str, str]]:
        for index, call in enumerate(self.tool_calls or ()):
            if isinstance(call, ToolCall):
                yield f"tool_calls[{index}]", f"{call.function.name}({call.function.arguments})"
            else:
                yield f"tool_calls[{index}]", f"{call.custom.name}({call.custom.input})"
        if self.function_call is not None:
            yield "function_call", f"{self.function_call.name}({self.function_call.arguments})"
