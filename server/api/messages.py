"""Messages in OpenAI's format, which other APIs copied: the fields of a message, and all texts and images in them."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from server.api.wire import IDENTIFIER, OPAQUE, Bookkeeping, Label, Noted, Object, Token, WireModel, repeats
from server.domain.conversation import ImagePart, Part, TextPart

# --- Content ---------------------------------------------------------------------------------------------


class TextContent(Noted):
    type: Literal["text"]
    text: str | None = Field(description="Null is an empty text.")

    @property
    def words(self) -> tuple[str, str]:
        """The field that holds the text, and the text."""
        return "text", self.text or ""


class ImageUrl(WireModel):
    url: str = Field(description="A data: URL (JPEG, PNG, WebP, GIF), or an http(s) URL if the operator allows it.")
    detail: Literal["auto", "low", "high", "original"] | None = Field(None, description="Accepted and ignored.")
    format: Token = Field(None, description="Ignored, unless it holds words.")


class ImageContent(Noted):
    type: Literal["image_url"]
    image_url: ImageUrl


class RefusalContent(Noted):
    type: Literal["refusal"]
    refusal: str | None = Field(description="Null is an empty text.")

    @property
    def words(self) -> tuple[str, str]:
        """The field that holds the text, and the text."""
        return "refusal", self.refusal or ""


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
    return tuple(said for index, part in enumerate(content) for said in _said(part, f"{param}[{index}]"))


def _said(part: TextContent | ImageContent | RefusalContent, path: str) -> Iterator[Part]:
    """What a part shows or says, and then the words in its bookkeeping."""
    if isinstance(part, ImageContent):
        yield ImagePart(part.image_url.url, param=f"{path}.image_url.url")
        yield from (TextPart(words, f"{path}.image_url.{field}") for field, words in part.image_url.asides())
    else:
        field, text = part.words
        yield TextPart(text, f"{path}.{field}")
    yield from (TextPart(words, f"{path}.{field}") for field, words in part.asides())


# --- Messages --------------------------------------------------------------------------------------------


class FunctionCall(Noted):
    name: str
    arguments: str | None = Field(description="Null is an empty text.")
    parsed_arguments: Bookkeeping = Field(None, description="Ignored, if it repeats the arguments.")

    def asides(self) -> Iterator[tuple[str, str]]:
        read = self.parsed_arguments is not None and repeats(self.arguments, self.parsed_arguments)
        return (aside for aside in super().asides() if not (read and aside[0] == "parsed_arguments"))

    @property
    def said(self) -> str:
        return f"{self.name}({self.arguments or ''})"


class CustomCall(Noted):
    name: str
    input: str | None = Field(description="Null is an empty text.")

    @property
    def said(self) -> str:
        return f"{self.name}({self.input or ''})"


class ToolCall(Noted):
    type: Literal["function"] = "function"
    function: FunctionCall

    @property
    def call(self) -> tuple[str, FunctionCall]:
        """The field that holds the call, and the call."""
        return "function", self.function


class CustomToolCall(Noted):
    type: Literal["custom"]
    custom: CustomCall

    @property
    def call(self) -> tuple[str, CustomCall]:
        """The field that holds the call, and the call."""
        return "custom", self.custom


AnyToolCall = Annotated[
    Annotated[ToolCall, Tag("<function>")] | Annotated[CustomToolCall, Tag("<custom>")],
    Discriminator(
        lambda value: "<custom>" if isinstance(value, dict) and value.get("type") == "custom" else "<function>"
    ),
]


class ReasoningDetail(Noted):
    """A part of OpenRouter's record of a model's reasoning. Encrypted reasoning is not judged: nobody can read it."""

    type: Literal["reasoning.text", "reasoning.summary", "reasoning.encrypted"]
    text: str | None = None
    summary: str | None = None
    data: str | None = Field(None, description="Ignored, if it is encrypted.")
    signature: Token = None
    format: Token = None

    def asides(self) -> Iterator[tuple[str, str]]:
        """Fields that hold words in place of a program's tokens, and `data` that is not encrypted."""
        if self.data and (self.type != "reasoning.encrypted" or OPAQUE.fullmatch(self.data) is None):
            yield "data", self.data
        yield from super().asides()


class UrlCitation(WireModel):
    url: str
    title: str | None = None
    content: str | None = None
    start_index: int | None = None
    end_index: int | None = None


class Annotation(WireModel):
    type: Literal["url_citation"]
    url_citation: UrlCitation


class ChatMessage(Noted):
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
    tool_call_id: Token = None
    name: str | None = None
    model: Token = None
    metadata: Bookkeeping = None
    parsed: Bookkeeping = Field(None, description="Ignored, if it repeats the content.")
    phase: Label = None
    prefix: bool | None = None
    weight: float | None = None

    def parts(self, index: int) -> tuple[Part, ...]:
        """Everything in the message that is judged: thoughts, content, images, refusal, sources and calls."""
        path = f"messages[{index}]"
        content = to_parts(self.content, f"{path}.content") if self.content is not None else ()
        images = to_parts(self.images or (), f"{path}.images")
        said = (*self._asides(), *self._sources(), *self._calls())
        thoughts = (TextPart(text, f"{path}.{field}") for field, text in self._thoughts())
        return (*thoughts, *content, *images, *(TextPart(text, f"{path}.{field}") for field, text in said))

    def asides(self) -> Iterator[tuple[str, str]]:
        read = self.parsed is not None and isinstance(self.content, str) and repeats(self.content, self.parsed)
        return (aside for aside in super().asides() if not (read and aside[0] == "parsed"))

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
        """Texts outside of the content: a refusal, and words in place of a name or in bookkeeping."""
        if self.refusal:
            yield "refusal", self.refusal
        if self.name and IDENTIFIER.fullmatch(self.name) is None:
            yield "name", self.name
        yield from self.asides()
        for index, call in enumerate(self.tool_calls or ()):
            path = f"tool_calls[{index}]"
            yield from ((f"{path}.{field}", words) for field, words in call.asides())
            kind, function = call.call
            yield from ((f"{path}.{kind}.{field}", words) for field, words in function.asides())
        if self.function_call is not None:
            yield from ((f"function_call.{field}", words) for field, words in self.function_call.asides())
        for index, detail in enumerate(self.reasoning_details or ()):
            yield from ((f"reasoning_details[{index}].{field}", words) for field, words in detail.asides())

    def _sources(self) -> Iterator[tuple[str, str]]:
        for index, annotation in enumerate(self.annotations or ()):
            cited = annotation.url_citation
            yield f"annotations[{index}]", " ".join(filter(None, [cited.title, cited.url, cited.content]))

    def _calls(self) -> Iterator[tuple[str, str]]:
        for index, call in enumerate(self.tool_calls or ()):
            yield f"tool_calls[{index}]", call.call[1].said
        if self.function_call is not None:
            yield "function_call", self.function_call.said
