"""POST /v1/responses in OpenAI's dialect: the input is judged, and the response's text is the verdict.

Nothing is stored, so whatever would go on from a stored response is refused. Every other field is read, or accepted
and ignored because it cannot change a verdict; docs/api.md shows the table.
"""

import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import Discriminator, Field, Tag, field_validator

from server.api.content import IDENTIFIER, OPAQUE, Object, String, WireModel
from server.api.detail import verdict_detail
from server.api.examples import RESPONSES_EXAMPLES, RESPONSES_RESPONSES, json_request
from server.api.http.body import read_body
from server.api.http.direct import DirectRoute, JSONReply
from server.api.http.ids import new_id
from server.api.openai import logprobs
from server.api.openai.chat import MAX_ALTERNATIVES
from server.api.openai.sampling import InlineModeration, StringOrObject
from server.api.policy import PolicyOptions, ScoresWanted
from server.api.service import Endpoint, Reply, Service, answered
from server.domain.caller import Handling
from server.domain.conversation import Conversation, ImagePart, Message, Part, TextPart
from server.domain.errors import ContextLengthExceeded, NothingToJudge
from server.domain.verdict import Verdict

router = APIRouter(prefix="/v1", tags=["responses"], route_class=DirectRoute)

LOGPROBS = "message.output_text.logprobs"
"""What a request includes to get log-probabilities."""


# --- Input -----------------------------------------------------------------------------------------------


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


class InputText(WireModel):
    type: Literal["input_text", "output_text", "text", "summary_text", "reasoning_text"]
    text: str
    annotations: list[OutputAnnotation] | None = Field(
        None, fail_fast=True, description="Their titles and addresses are text, and so are ids that hold words."
    )
    logprobs: list[Any] | None = Field(None, description="Accepted and ignored.")
    prompt_cache_breakpoint: Object | None = Field(None, description="Accepted and ignored.")

    def parts(self, param: str) -> Iterator[Part]:
        yield TextPart(self.text, f"{param}.text")
        for index, annotation in enumerate(self.annotations or ()):
            tokens = (annotation.file_id, annotation.container_id)
            named = (annotation.title, annotation.url, annotation.filename, *filter(_is_no_token, tokens))
            if source := " ".join(filter(None, named)):
                yield TextPart(source, f"{param}.annotations[{index}]")


class InputImage(WireModel):
    type: Literal["input_image"]
    image_url: str = Field(description="A data: URL (JPEG, PNG, WebP, GIF); http(s) only where the operator allows it.")
    detail: Literal["auto", "low", "high", "original"] | None = Field(None, description="Accepted and ignored.")
    file_id: None = Field(None, description="Files are not looked up here.")
    prompt_cache_breakpoint: Object | None = Field(None, description="Accepted and ignored.")

    def parts(self, param: str) -> Iterator[Part]:
        yield ImagePart(self.image_url, param=f"{param}.image_url")


class InputRefusal(WireModel):
    type: Literal["refusal"]
    refusal: str

    def parts(self, param: str) -> Iterator[Part]:
        yield TextPart(self.refusal, f"{param}.refusal")


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


class _Item(WireModel):
    """What items carry beside what they say. Words that stand there are a text of the item like any other."""

    LABELS: ClassVar[tuple[str, ...]] = ("status", "namespace")
    """Fields that say nothing while each holds one identifier."""
    TOKENS: ClassVar[tuple[str, ...]] = ("id", "call_id")
    """Fields that say nothing while each holds a token that a program made."""

    id: str | None = None
    call_id: str | None = None
    status: str | None = None
    namespace: str | None = None

    def message(self, param: str) -> Message:
        """All that the item says; `param` is its path in the request."""
        role, parts = self.says(param)
        return Message(role, (*parts, *self._asides(param)))

    def says(self, param: str) -> tuple[str, tuple[Part, ...]]:
        """The role of the item and what it says in the fields that are meant for that."""
        raise NotImplementedError

    def _asides(self, param: str) -> Iterator[Part]:
        for fields, harmless in ((self.LABELS, IDENTIFIER), (self.TOKENS, OPAQUE)):
            for field in fields:
                value: str | None = getattr(self, field)
                if value and harmless.fullmatch(value) is None:
                    yield TextPart(value, f"{param}.{field}")


class InputMessage(_Item):
    LABELS = (*_Item.LABELS, "phase")

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    phase: str | None = None

    def says(self, param: str) -> tuple[str, tuple[Part, ...]]:
        return self.role, _parts(self.content, f"{param}.content")


class FunctionCallItem(_Item):
    type: Literal["function_call"]
    name: str
    arguments: str

    def says(self, param: str) -> tuple[str, tuple[Part, ...]]:
        return "assistant", (TextPart(f"{self.name}({self.arguments})", param),)


class CustomCallItem(_Item):
    type: Literal["custom_tool_call"]
    name: str
    input: str

    def says(self, param: str) -> tuple[str, tuple[Part, ...]]:
        return "assistant", (TextPart(f"{self.name}({self.input})", param),)


class CallOutputItem(_Item):
    LABELS = (*_Item.LABELS, "name")

    type: Literal["function_call_output", "custom_tool_call_output"]
    output: Content
    name: str | None = None

    def says(self, param: str) -> tuple[str, tuple[Part, ...]]:
        return "tool", _parts(self.output, f"{param}.output")


class ReasoningItem(_Item):
    """What a model thought. What is encrypted says nothing to anybody."""

    TOKENS = (*_Item.TOKENS, "encrypted_content")

    type: Literal["reasoning"]
    summary: InputParts | None = None
    content: InputParts | None = None
    encrypted_content: str | None = Field(None, description="Ignored, unless it holds words.")

    def says(self, param: str) -> tuple[str, tuple[Part, ...]]:
        summary = _parts(self.summary or [], f"{param}.summary")
        return "assistant", (*summary, *_parts(self.content or [], f"{param}.content"))


class ItemReference(WireModel):
    """Refused by name, as the Vercel AI SDK sends it unless it is told not to count on a store."""

    type: Literal["item_reference"]
    id: str

    @field_validator("id")
    @classmethod
    def _refuse(cls, _: str) -> str:
        raise ValueError("nothing is stored here, so send the item itself, which clients do with 'store': false")

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


def _parts(content: "str | list[InputText | InputImage | InputRefusal]", param: str) -> tuple[Part, ...]:
    if isinstance(content, str):
        return (TextPart(content, param),)
    return tuple(said for index, part in enumerate(content) for said in part.parts(f"{param}[{index}]"))


# --- The request -----------------------------------------------------------------------------------------


class ResponseStreamOptions(WireModel):
    include_obfuscation: bool = Field(False, description="Accepted and ignored.")


class IgnoredResponseOptions(WireModel):
    """They shape how text is made or kept; a verdict is decoded greedily, and nothing is kept."""

    context_management: list[Any] | None = None
    max_tool_calls: int | None = None
    moderation: InlineModeration | None = Field(None, description="The response itself is the verdict.")
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Object | None = None
    prompt_cache_retention: str | None = None
    reasoning: Object | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    temperature: float | None = None
    text: Object | None = None
    tool_choice: StringOrObject | None = None
    tools: list[Any] | None = None
    top_p: float | None = None
    truncation: str | None = Field(None, description="Nothing is ever cut.")
    user: str | None = None


class ResponsesRequest(IgnoredResponseOptions):
    input: StringOrItems
    instructions: str | None = None
    model: str | None = None
    max_output_tokens: int | None = Field(None, ge=0, description="Cuts the list of codes, never the verdict.")
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    include: list[str] | None = Field(None, description=f"Only {LOGPROBS} adds something.")
    top_logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES)
    metadata: Object | None = Field(None, description="Given back as it came.")
    policy: PolicyOptions | None = None
    category_scores: ScoresWanted = None
    background: bool | None = Field(None, description="Only false.")
    previous_response_id: str | None = Field(None, description="Only null.")
    conversation: StringOrObject | None = Field(None, description="Only null.")
    prompt: Object | None = Field(None, description="Only null.")

    @field_validator("background", "previous_response_id", "conversation", "prompt")
    @classmethod
    def _refuse_what_needs_a_store(cls, value: Any) -> Any:
        if value:
            raise ValueError("nothing is stored here, so send the whole input and wait for the answer")
        return value

    def to_conversation(self) -> Conversation:
        """The instructions and the input. Raises NothingToJudge."""
        if isinstance(self.input, str):
            said = [Message("user", (TextPart(self.input, "input"),))]
        else:
            said = [item.message(f"input[{index}]") for index, item in enumerate(self.input)]
        if not said:
            raise NothingToJudge("There is no input to judge.", param="input")
        told = [Message("system", (TextPart(self.instructions, "instructions"),))] if self.instructions else []
        return Conversation.from_messages([*told, *said])


# --- The response ----------------------------------------------------------------------------------------


async def respond(service: Service, body: ResponsesRequest, handling: Handling) -> Reply:
    wants_logprobs = LOGPROBS in (body.include or ())
    if wants_logprobs:
        handling = replace(handling, top_logprobs=body.top_logprobs or 0)
    try:
        (verdict,) = await service.judge(
            [body.to_conversation()],
            model=body.model,
            policy=body.policy,
            scores=body.category_scores,
            handling=handling,
        )
    except (ContextLengthExceeded, NothingToJudge) as error:
        raise error.at("input") from None
    limit = body.max_output_tokens or None
    answer = service.family.write(verdict, max_tokens=limit)
    status = "incomplete" if answer.cut else "completed"
    now = int(time.time())
    message = {
        "id": new_id("msg_"),
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [_output_text(answer.text, [*map(logprobs.entry, answer.tokens or ())])],
    }
    document = {
        "id": new_id("resp_"),
        "object": "response",
        "created_at": now,
        "completed_at": None if answer.cut else now,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if answer.cut else None,
        "model": service.names.id,
        "instructions": body.instructions,
        "output": [message],
        "output_text": answer.text,
        "usage": _usage(verdict, limit),
        "metadata": body.metadata or {},
        "max_output_tokens": body.max_output_tokens,
        "top_logprobs": body.top_logprobs or 0,
        "background": False,
        "store": False,
        "previous_response_id": None,
        "parallel_tool_calls": False,
        "tool_choice": "none",
        "tools": [],
        "text": {"format": {"type": "text"}},
        "temperature": None,
        "top_p": None,
        "truncation": "disabled",
        "guard": verdict_detail(verdict),
    }
    return Reply(document, [verdict])


ENDPOINT = Endpoint("/v1/responses", ResponsesRequest, respond)


@router.post(
    "/responses",
    summary="Judge the last item of an input",
    openapi_extra=json_request(ResponsesRequest, RESPONSES_EXAMPLES),
    responses=RESPONSES_RESPONSES,
)
async def create_response(request: Request) -> Response:
    body = await read_body(request, ResponsesRequest)
    document = (await answered(request, body, respond)).document
    if not body.stream:
        return JSONReply(document)
    return StreamingResponse(_stream(document), media_type="text/event-stream")


async def _stream(document: dict[str, Any]) -> AsyncIterator[str]:
    for number, (kind, fields) in enumerate(_events(document)):
        data = json.dumps({"type": kind, "sequence_number": number, **fields}, separators=(",", ":"))
        yield f"event: {kind}\ndata: {data}\n\n"


def _events(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The response as it would have come into being; the verdict was whole before the first of them."""
    (item,) = document["output"]
    (part,) = item["content"]
    begun = {**document, "status": "in_progress", "completed_at": None, "incomplete_details": None, "output": []}
    begun |= {"output_text": "", "usage": None}
    del begun["guard"]
    of_item: dict[str, Any] = {"output_index": 0}
    of_part = {"item_id": item["id"], **of_item, "content_index": 0}
    yield "response.created", {"response": begun}
    yield "response.in_progress", {"response": begun}
    yield "response.output_item.added", {**of_item, "item": {**item, "status": "in_progress", "content": []}}
    yield "response.content_part.added", {**of_part, "part": _output_text("", [])}
    yield "response.output_text.delta", {**of_part, "delta": part["text"], "logprobs": part["logprobs"]}
    yield "response.output_text.done", {**of_part, "text": part["text"], "logprobs": part["logprobs"]}
    yield "response.content_part.done", {**of_part, "part": part}
    yield "response.output_item.done", {**of_item, "item": item}
    yield f"response.{document['status']}", {"response": document}


def _output_text(text: str, tokens: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": tokens}


def _usage(verdict: Verdict, limit: int | None) -> dict[str, Any]:
    completion = verdict.completion
    output_tokens = min(completion.completion_tokens, limit or completion.completion_tokens)
    return {
        "input_tokens": completion.prompt_tokens,
        "input_tokens_details": {"cached_tokens": completion.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": completion.prompt_tokens + output_tokens,
    }
