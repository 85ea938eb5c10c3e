"""The input of the Responses API: items of a conversation, and the texts and images of each."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from server.api.messages import String
from server.api.wire import OPAQUE, Label, Noted, Options, Token, WireModel
from server.domain.conversation import ImagePart, Message, Part, TextPart


class OutputAnnotation(WireModel):
    type: Literal["url_citation", "file_citation", "container_file_citation", "file_path"]
    title: str | None = None
    url: str | None = None
    filename: str | None = None
    file_id: str | None = None
    container_id: str | None = None
    index: int | None = None
    start_index: int | None = None
    end_index: int | None = None


def _is_no_token(value: str | None) -> bool:
    return value is not None and OPAQUE.fullmatch(value) is None


class SentToken(WireModel):
    """A token as this API reports it. Clients send the tokens of an answer back with its text."""

    token: str
    logprob: float | None = None
    bytes: list[int] | None = Field(None, fail_fast=True)


class SpellingToken(SentToken):
    top_logprobs: list[SentToken] | None = Field(None, fail_fast=True)


MAX_TOKEN = 64
"""The most characters of an alternative token. A longer one is judged."""


class InputText(Noted):
    type: Literal["input_text", "output_text", "text", "summary_text", "reasoning_text"]
    text: str | None = Field(description="Null is an empty text.")
    annotations: list[OutputAnnotation] | None = Field(
        None, fail_fast=True, description="Titles, addresses, and ids that hold words are judged as text."
    )
    logprobs: list[SpellingToken] | None = Field(
        None, fail_fast=True, description="Ignored while the tokens spell the text. Otherwise they are judged."
    )

    def parts(self, param: str) -> Iterator[Part]:
        yield TextPart(self.text or "", f"{param}.text")
        for index, annotation in enumerate(self.annotations or ()):
            tokens = (annotation.file_id, annotation.container_id)
            named = (annotation.title, annotation.url, annotation.filename, *filter(_is_no_token, tokens))
            if source := " ".join(filter(None, named)):
                yield TextPart(source, f"{param}.annotations[{index}]")
        spelt = "".join(one.token for one in self.logprobs or ())
        others = (other.token for one in self.logprobs or () for other in one.top_logprobs or ())
        for words in ("" if spelt in (self.text or "") else spelt, "\n".join(o for o in others if len(o) > MAX_TOKEN)):
            if words:
                yield TextPart(words, f"{param}.logprobs")
        yield from _asides_of(self, param)


class InputImage(Noted):
    type: Literal["input_image"]
    image_url: str = Field(
        description="A data: URL (JPEG, PNG, WebP, GIF), or an http(s) URL if the operator allows it."
    )
    detail: Literal["auto", "low", "high", "original"] | None = Field(None, description="Accepted and ignored.")
    file_id: None = Field(None, description="Not supported: send the image as a URL.")

    def parts(self, param: str) -> Iterator[Part]:
        yield ImagePart(self.image_url, param=f"{param}.image_url")
        yield from _asides_of(self, param)


class InputRefusal(Noted):
    type: Literal["refusal"]
    refusal: str | None = Field(description="Null is an empty text.")

    def parts(self, param: str) -> Iterator[Part]:
        yield TextPart(self.refusal or "", f"{param}.refusal")
        yield from _asides_of(self, param)


def _content_kind(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str):
        return None
    return "<text>" if kind in ("input_text", "output_text", "text", "summary_text", "reasoning_text") else f"<{kind}>"


InputPart = Annotated[
    Annotated[InputText, Tag("<text>")]
    | Annotated[InputImage, Tag("<input_image>")]
    | Annotated[InputRefusal, Tag("<refusal>")],
    Discriminator(_content_kind),
]
InputParts = Annotated[list[InputPart], Field(fail_fast=True), Tag("<parts>")]
Content = Annotated[
    String | InputParts, Discriminator(lambda value: "<string>" if isinstance(value, str) else "<parts>")
]


class _Item(Noted):
    """The labels and tokens of an item. Words in their place are judged like any other text of the item."""

    call_id: Token = None
    status: Label = None
    namespace: Label = None
    agent: Options = None
    caller: Options = None
    created_by: Label = None

    def message(self, param: str) -> Message:
        """The item as a message. `param` is its path in the request."""
        role, parts = self.says(param)
        return Message(role, (*parts, *_asides_of(self, param)))

    def says(self, param: str) -> tuple[str, tuple[Part, ...]]:
        """The role of the item, and the parts in its content fields."""
        raise NotImplementedError


class InputMessage(_Item):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content | None = Field(description="Null is an empty text.")
    phase: Label = None

    def says(self, param: str) -> tuple[str, tuple[Part, ...]]:
        return self.role, _parts(self.content, f"{param}.content")


class FunctionCallItem(_Item):
    type: Literal["function_call"]
    name: str
    arguments: str | None = Field(description="Null is an empty text.")

    def says(self, param: str) -> tuple[str, tuple[Part, ...]]:
        return "assistant", (TextPart(f"{self.name}({self.arguments or ''})", param),)


class CustomCallItem(_Item):
    type: Literal["custom_tool_call"]
    name: str
    input: str | None = Field(description="Null is an empty text.")

    def says(self, param: str) -> tuple[str, tuple[Part, ...]]:
        return "assistant", (TextPart(f"{self.name}({self.input or ''})", param),)


class CallOutputItem(_Item):
    type: Literal["function_call_output", "custom_tool_call_output"]
    output: Content | None = Field(description="Null is an empty text.")
    name: Label = None

    def says(self, param: str) -> tuple[str, tuple[Part, ...]]:
        return "tool", _parts(self.output, f"{param}.output")


class ReasoningItem(_Item):
    """A model's reasoning. Encrypted reasoning is not judged: nobody can read it."""

    type: Literal["reasoning"]
    summary: InputParts | None = None
    content: InputParts | None = None
    encrypted_content: Token = Field(None, description="Ignored, unless it holds words.")

    def says(self, param: str) -> tuple[str, tuple[Part, ...]]:
        summary = _parts(self.summary or [], f"{param}.summary")
        return "assistant", (*summary, *_parts(self.content or [], f"{param}.content"))


class ItemReference(WireModel):
    """Refused with its own message: the Vercel AI SDK sends it unless it is configured for a server without a store."""

    type: Literal["item_reference"]
    id: str

    @field_validator("id")
    @classmethod
    def _refuse(cls, _: str) -> str:
        raise ValueError("this server stores nothing. Send the item itself, as clients do with 'store': false")

    def message(self, param: str) -> Message:
        raise NotImplementedError  # none is ever read


def _item_kind(value: Any) -> str | None:
    if not isinstance(value, dict):
        return None
    kind = value.get("type", "message")
    if kind == "custom_tool_call_output":
        kind = "function_call_output"
    return f"<{kind}>" if isinstance(kind, str) else None


InputItem = Annotated[
    Annotated[InputMessage, Tag("<message>")]
    | Annotated[FunctionCallItem, Tag("<function_call>")]
    | Annotated[CustomCallItem, Tag("<custom_tool_call>")]
    | Annotated[CallOutputItem, Tag("<function_call_output>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")]
    | Annotated[ItemReference, Tag("<item_reference>")],
    Discriminator(_item_kind),
]
StringOrItems = Annotated[
    String | Annotated[list[InputItem], Field(fail_fast=True), Tag("<items>")],
    Discriminator(lambda value: "<string>" if isinstance(value, str) else "<items>"),
]


def _parts(content: "str | list[InputText | InputImage | InputRefusal] | None", param: str) -> tuple[Part, ...]:
    if content is None or isinstance(content, str):
        return (TextPart(content or "", param),)
    return tuple(said for index, part in enumerate(content) for said in part.parts(f"{param}[{index}]"))


def _asides_of(noted: Noted, param: str) -> Iterator[Part]:
    return (TextPart(words, f"{param}.{field}") for field, words in noted.asides())
