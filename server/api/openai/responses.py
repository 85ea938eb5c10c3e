"""POST /v1/responses in OpenAI's dialect: the input is judged, and the response's text is the verdict.

Nothing is stored, so fields that refer to a stored response are refused. Every other field is read, or accepted and
ignored because it cannot change a verdict. docs/api-fields.md has the table.
"""

import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response as HttpResponse
from pydantic import Field, field_validator

from server.api.chat import logprobs
from server.api.chat.judging import laid_out, layout_for
from server.api.chat.logprobs import MAX_ALTERNATIVES, TokenLogprob
from server.api.chat.options import InlineModeration
from server.api.chat.structured import Place, Structured, Wanted, wanted_call, wanted_format
from server.api.detail import Guard, verdict_detail
from server.api.endpoint import Endpoint, answered
from server.api.http.body import read_body
from server.api.http.description import ERRORS, json_body, reply
from server.api.http.direct import DirectRoute, JSONReply
from server.api.http.ids import new_id
from server.api.http.shapes import Closed, Count, EmptyList, Moment
from server.api.http.sse import event, stream
from server.api.messages import StringOrObject
from server.api.openai import examples
from server.api.openai.items import StringOrItems
from server.api.openai.usage import OutputTokensDetails
from server.api.policy import PolicyOptions, ScoresWanted
from server.api.service import Reply, Service
from server.api.wire import Object, WireModel
from server.domain.aio import done
from server.domain.caller import Handling
from server.domain.conversation import Conversation, Message, TextPart
from server.domain.errors import ContextLengthExceeded, NothingToJudge
from server.domain.verdict import Verdict
from server.families.base import Wording

router = APIRouter(prefix="/v1", tags=["responses"], route_class=DirectRoute)

MAX_METADATA_BYTES = 65_536
"""OpenAI allows 16 texts of 512 characters."""

LOGPROBS = "message.output_text.logprobs"
"""A request has this in `include` to get log-probabilities."""


# --- The request -----------------------------------------------------------------------------------------


class ResponseStreamOptions(WireModel):
    include_obfuscation: bool = Field(False, description="Accepted and ignored.")


class IgnoredResponseOptions(WireModel):
    """They affect how text is generated or stored. A verdict is decoded greedily, and nothing is stored."""

    context_management: list[Any] | None = None
    max_tool_calls: int | None = None
    moderation: InlineModeration | None = Field(None, description="Ignored: the response itself is the verdict.")
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Object | None = None
    prompt_cache_retention: str | None = None
    reasoning: Object | None = None
    safety_identifier: str | None = None
    service_tier: str | None = None
    store: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    truncation: str | None = Field(None, description="Ignored: no input is ever cut.")
    user: str | None = None


class ResponsesRequest(IgnoredResponseOptions):
    input: StringOrItems
    instructions: str | None = None
    model: str | None = None
    max_output_tokens: int | None = Field(None, ge=0, description="Cuts the list of codes, never the verdict.")
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    include: list[str] | None = Field(None, description=f"Only {LOGPROBS} has an effect.")
    top_logprobs: int | None = Field(None, ge=0, le=MAX_ALTERNATIVES)
    metadata: Object | None = Field(None, description="Returned unchanged.")
    text: Object | None = Field(None, description="A `format` of `json_object`, or of a schema that holds a verdict.")
    tools: list[Any] | None = Field(None, description="Ignored, unless `tool_choice` forces a call.")
    tool_choice: StringOrObject | None = Field(None, description="A forced call gets the verdict as its arguments.")
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
            raise ValueError("this server stores nothing. Send the whole input and wait for the response")
        return value

    def wanted(self) -> list[Wanted]:
        """The schemas of which the answer must obey one, none if it is plain text. Raises InvalidRequest."""
        if calls := wanted_call(self.tool_choice, self.tools or ()):
            return calls
        format_ = (self.text or {}).get("format")
        wanted = wanted_format(format_, "text.format") if format_ else None
        return [] if wanted is None else [wanted]

    @field_validator("metadata")
    @classmethod
    def _bound_what_is_repeated(cls, metadata: dict[str, Any] | None) -> dict[str, Any] | None:
        if metadata and len(orjson.dumps(metadata)) > MAX_METADATA_BYTES:
            raise ValueError(f"it may have at most {MAX_METADATA_BYTES} bytes of JSON")
        return metadata

    def to_conversation(self) -> Conversation:
        """The instructions and the input. Raises NothingToJudge."""
        if isinstance(self.input, str):
            said = [Message("user", (TextPart(self.input, "input"),))]
        else:
            said = [item.message(f"input[{index}]") for index, item in enumerate(self.input)]
        if not said:
            raise NothingToJudge("There is no input to judge. Send it in 'input'.", param="input")
        told = [Message("system", (TextPart(self.instructions, "instructions"),))] if self.instructions else []
        return Conversation.from_messages([*told, *said])


# --- The response ----------------------------------------------------------------------------------------


class OutputText(Closed):
    type: Literal["output_text"]
    text: str
    annotations: EmptyList
    logprobs: list[TokenLogprob]


class OutputMessage(Closed):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    status: Literal["completed", "incomplete"]
    content: Annotated[list[OutputText], Field(min_length=1, max_length=1)]


class OutputCall(Closed):
    """`arguments` are JSON in the schema of the function."""

    id: str
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    status: Literal["completed"]


class CachedInput(Closed):
    cached_tokens: Count
    cache_write_tokens: Literal[0]


class ResponseUsage(Closed):
    input_tokens: Count
    input_tokens_details: CachedInput
    output_tokens: Count
    output_tokens_details: OutputTokensDetails
    total_tokens: Count


class IncompleteDetails(Closed):
    reason: Literal["max_output_tokens"]


class TextOptions(Closed):
    """The `format` that the request asked for, or text."""

    format: dict[str, Any]


class Response(Closed):
    """A verdict has no use for the fields that are null or constant. `metadata` is the caller's own."""

    id: str
    object: Literal["response"]
    created_at: Moment
    completed_at: Moment | None
    status: Literal["completed", "incomplete"]
    error: None
    incomplete_details: IncompleteDetails | None
    model: str
    instructions: str | None
    output: Annotated[list[OutputMessage | OutputCall], Field(min_length=1, max_length=1)]
    output_text: str
    usage: ResponseUsage
    metadata: dict[str, Any]
    max_output_tokens: Count | None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_ALTERNATIVES)]
    background: Literal[False]
    store: Literal[False]
    previous_response_id: None
    parallel_tool_calls: Literal[False]
    tool_choice: Literal["none"]
    tools: EmptyList
    text: TextOptions
    temperature: None
    top_p: None
    truncation: Literal["disabled"]
    guard: Guard


async def respond(service: Service, body: ResponsesRequest, handling: Handling) -> Reply[Response]:
    wants_logprobs = LOGPROBS in (body.include or ())
    if wants_logprobs:
        handling = replace(handling, top_logprobs=body.top_logprobs or 0)
    layout = await done(lambda: layout_for(body.wanted(), service, body.policy), large=handling.large)
    try:
        (verdict,) = await service.judge(
            [await done(body.to_conversation, large=handling.large)],
            model=body.model,
            policy=body.policy,
            scores=body.category_scores,
            handling=handling,
        )
    except (ContextLengthExceeded, NothingToJudge) as error:
        raise error.at("input") from None
    return Reply(_document(service, body, verdict, laid_out(layout, verdict)), [verdict])


def _document(service: Service, body: ResponsesRequest, verdict: Verdict, structured: Structured | None) -> Response:
    limit = body.max_output_tokens or None
    # Half a JSON object is none, so it is never cut.
    answer = Wording(structured.text) if structured else service.family.write(verdict, max_tokens=limit)
    status: Literal["completed", "incomplete"] = "incomplete" if answer.cut else "completed"
    now = int(time.time())
    called = structured is not None and structured.wanted.place is not Place.TEXT
    item = _call(structured) if structured and called else _message(answer, status)
    return {
        "id": new_id("resp_"),
        "object": "response",
        "created_at": now,
        "completed_at": None if answer.cut else now,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if answer.cut else None,
        "model": service.names.id,
        "instructions": body.instructions,
        "output": [item],
        "output_text": "" if called else answer.text,
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
        "text": {"format": (body.text or {}).get("format") or {"type": "text"}},
        "temperature": None,
        "top_p": None,
        "truncation": "disabled",
        "guard": verdict_detail(verdict),
    }


def _message(answer: Wording, status: Literal["completed", "incomplete"]) -> OutputMessage:
    return {
        "id": new_id("msg_"),
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [_output_text(answer.text, [*map(logprobs.entry, answer.tokens or ())])],
    }


def _call(structured: Structured) -> OutputCall:
    return {
        "id": new_id("fc_"),
        "type": "function_call",
        "call_id": new_id("call_"),
        "name": structured.wanted.function,
        "arguments": structured.text,
        "status": "completed",
    }


ENDPOINT = Endpoint("/v1/responses", ResponsesRequest, respond)


@router.post(
    "/responses",
    summary="Judge the last item of an input",
    openapi_extra=json_body(ResponsesRequest, examples.RESPONSES_BODIES),
    responses={
        200: reply(Response, "The verdict as the response's text", examples.RESPONSE, events=examples.TEXT_DELTA),
        **ERRORS,
    },
)
async def create_response(request: Request) -> HttpResponse:
    body = await read_body(request, ResponsesRequest)
    document = (await answered(request, body, respond)).document
    if not body.stream:
        return JSONReply(document)
    return stream(_numbered_events(document))


async def _numbered_events(document: Response) -> AsyncIterator[str]:
    for number, (kind, fields) in enumerate(_events(document)):
        yield event({"type": kind, "sequence_number": number, **fields}, kind)


def _events(document: Response) -> Iterator[tuple[str, dict[str, Any]]]:
    """The response as if it were generated step by step. The verdict is complete before the first event."""
    (item,) = document["output"]
    begun: dict[str, Any] = {**document, "status": "in_progress", "completed_at": None, "incomplete_details": None}
    begun |= {"output": [], "output_text": "", "usage": None}
    del begun["guard"]
    yield "response.created", {"response": begun}
    yield "response.in_progress", {"response": begun}
    yield from _of_message(item) if item["type"] == "message" else _of_call(item)
    yield "response.output_item.done", {"output_index": 0, "item": item}
    yield f"response.{document['status']}", {"response": document}


def _of_message(item: OutputMessage) -> Iterator[tuple[str, dict[str, Any]]]:
    (part,) = item["content"]
    of_part = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    empty = {**item, "status": "in_progress", "content": []}
    yield "response.output_item.added", {"output_index": 0, "item": empty}
    yield "response.content_part.added", {**of_part, "part": _output_text("", [])}
    yield "response.output_text.delta", {**of_part, "delta": part["text"], "logprobs": part["logprobs"]}
    yield "response.output_text.done", {**of_part, "text": part["text"], "logprobs": part["logprobs"]}
    yield "response.content_part.done", {**of_part, "part": part}


def _of_call(item: OutputCall) -> Iterator[tuple[str, dict[str, Any]]]:
    of_item: dict[str, Any] = {"item_id": item["id"], "output_index": 0}
    empty = {**item, "status": "in_progress", "arguments": ""}
    yield "response.output_item.added", {"output_index": 0, "item": empty}
    yield "response.function_call_arguments.delta", {**of_item, "delta": item["arguments"]}
    yield "response.function_call_arguments.done", {**of_item, "name": item["name"], "arguments": item["arguments"]}


def _output_text(text: str, tokens: list[TokenLogprob]) -> OutputText:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": tokens}


def _usage(verdict: Verdict, limit: int | None) -> ResponseUsage:
    completion = verdict.completion
    output_tokens = min(completion.completion_tokens, limit or completion.completion_tokens)
    return {
        "input_tokens": completion.prompt_tokens,
        "input_tokens_details": {"cached_tokens": completion.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": completion.prompt_tokens + output_tokens,
    }
