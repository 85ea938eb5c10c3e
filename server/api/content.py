"""Content as OpenAI's endpoints spell it: strings, text parts and image parts."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from server.domain.conversation import ImagePart, Part, TextPart

IDENTIFIER = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""A speaker's or a function's name that says nothing else. Any other `name` is a text, and judged."""

OPAQUE = re.compile(r"[A-Za-z0-9+/=_.:-]*")
"""A token of any length that a program made: an id, a signature, what is encrypted. Anything else there is a text."""


class WireModel(BaseModel):
    """Base of all request bodies: unknown fields are refused, and types are not coerced."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Object = dict[str, Any]


class TextContent(WireModel):
    type: Literal["text"]
    text: str
    cache_control: Object | None = Field(None, description="Accepted and ignored.")
    prompt_cache_breakpoint: Object | None = Field(None, description="Accepted and ignored.")


class ImageUrl(WireModel):
    url: str = Field(description="A data: URL (JPEG, PNG, WebP, GIF); http(s) only where the operator allows it.")
    detail: Literal["auto", "low", "high", "original"] | None = Field(None, description="Accepted and ignored.")


class ImageContent(WireModel):
    type: Literal["image_url"]
    image_url: ImageUrl


class RefusalContent(WireModel):
    type: Literal["refusal"]
    refusal: str


# Branches of unions are named in <>, so that the path of a fault can be told from them (api/http/body.py).


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
# A list with a million faults would take seconds to report: the first one is enough.
Strings = Annotated[list[str], Field(fail_fast=True), Tag("<strings>")]
Parts = Annotated[list[ContentPart], Field(fail_fast=True), Tag("<parts>")]

StringOrParts = Annotated[
    String | Parts, Discriminator(lambda value: "<parts>" if isinstance(value, list) else _kind(value))
]
StringOrStrings = Annotated[
    String | Strings, Discriminator(lambda value: "<strings>" if isinstance(value, list) else _kind(value))
]
StringOrStringsOrParts = Annotated[String | Strings | Parts, Discriminator(_kind)]


def to_parts(content: str | Sequence[TextContent | ImageContent | RefusalContent], param: str) -> tuple[Part, ...]:
    """The parts of a conversation; `param` is the path of `content` in the request: errors and verdicts name it."""
    if isinstance(content, str):
        return (TextPart(content, param),)
    return tuple(
        ImagePart(part.image_url.url, param=f"{param}[{index}].image_url.url")
        if isinstance(part, ImageContent)
        else TextPart(part.text if isinstance(part, TextContent) else part.refusal, f"{param}[{index}].{part.type}")
        for index, part in enumerate(content)
    )
