"""/v1/batches in OpenAI's dialect. server.batches.runner works on them."""

from typing import Annotated, Any, Literal, NotRequired, cast, get_args

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from pydantic import Field, field_validator

from server.api.endpoint import handling_of
from server.api.http.body import read_body
from server.api.http.description import Responses, json_body, reply
from server.api.http.shapes import Closed, Count, Moment
from server.api.http.state import served
from server.api.openai import examples
from server.api.openai.files import Page, check_cursor, owner, page_of
from server.api.openai.upload import ExpiresAfter
from server.api.openai.usage import OutputTokensDetails
from server.api.wire import WireModel
from server.domain.events import BatchChanged, publish
from server.store import batches as store
from server.store.batches import Batches, Status
from server.store.ids import Kind

router = APIRouter(prefix="/v1", tags=["batches"])

BatchEndpoint = Literal["/v1/moderations", "/v1/chat/completions", "/v1/completions", "/v1/responses"]
"""The endpoints that a batch may use."""


class BatchRequest(WireModel):
    input_file_id: str
    endpoint: BatchEndpoint = Field(description="The endpoint of every line.")
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = Field(
        None, description="Up to 16 pairs: keys of up to 64 characters, values of up to 512."
    )
    output_expires_after: ExpiresAfter | None = None

    @field_validator("metadata")
    @classmethod
    def _bound_metadata(cls, metadata: dict[str, str] | None) -> dict[str, str] | None:
        if metadata is not None and len(metadata) > 16:
            raise ValueError("it may hold at most 16 pairs")
        if any(len(key) > 64 or len(value) > 512 for key, value in (metadata or {}).items()):
            raise ValueError("a key may have at most 64 characters and a value at most 512")
        return metadata


class RequestCounts(Closed):
    total: Count
    completed: Count
    failed: Count


class BatchFault(Closed):
    """The reason why a batch failed before any of it was judged. `line` counts from 1."""

    code: str
    message: str
    param: str | None
    line: int | None


class BatchFaults(Closed):
    object: Literal["list"]
    data: list[BatchFault]


class CachedTokens(Closed):
    cached_tokens: Count


class BatchUsage(Closed):
    input_tokens: Count
    input_tokens_details: CachedTokens
    output_tokens: Count
    output_tokens_details: OutputTokensDetails
    total_tokens: Count


class Batch(Closed):
    id: str
    object: Literal["batch"]
    endpoint: BatchEndpoint
    input_file_id: str
    completion_window: Literal["24h"]
    status: Status
    created_at: Moment
    expires_at: Moment
    request_counts: RequestCounts
    in_progress_at: NotRequired[Moment]
    finalizing_at: NotRequired[Moment]
    cancelling_at: NotRequired[Moment]
    completed_at: NotRequired[Moment]
    failed_at: NotRequired[Moment]
    expired_at: NotRequired[Moment]
    cancelled_at: NotRequired[Moment]
    model: NotRequired[str]
    output_file_id: NotRequired[str]
    error_file_id: NotRequired[str]
    errors: NotRequired[BatchFaults]
    metadata: NotRequired[dict[str, str]]
    usage: NotRequired[BatchUsage]


class BatchList(Page):
    """The ids are empty strings if the page is empty."""

    data: list[Batch]


BATCH_RESPONSES: Responses = {200: reply(Batch, "The batch", examples.BATCH), **examples.STORE_ERRORS}


@router.post(
    "/batches",
    summary="Judge the lines of a file in the background",
    openapi_extra=json_body(BatchRequest, examples.BATCH_BODIES),
    responses=BATCH_RESPONSES,
)
async def create_batch(request: Request) -> JSONResponse:
    body = await read_body(request, BatchRequest)
    handling = handling_of(request)
    batch = await _batches(request).create(
        owner(request),
        never_remote=handling.never_remote,
        finished_prompts=handling.finished_prompts,
        endpoint=body.endpoint,
        completion_window=body.completion_window,
        input_file_id=body.input_file_id,
        output_expires_after=body.output_expires_after.seconds if body.output_expires_after else None,
        metadata=body.metadata,
        most_open=served(request).settings.max_open_batches,
    )
    publish(BatchChanged(batch.id, batch.status))
    _tell_the_runner(request)
    return JSONResponse(_document(batch))


@router.get(
    "/batches",
    summary="List batches, the newest first",
    responses={200: reply(BatchList, "A page of batches", examples.page(examples.BATCH)), **examples.STORE_ERRORS},
)
async def list_batches(
    request: Request, limit: Annotated[int, Query(ge=1, le=100)] = 20, after: str | None = None
) -> JSONResponse:
    check_cursor(Kind.BATCH, after)
    page, more = await _batches(request).page(owner(request), after=after, limit=limit)
    data = [_document(batch) for batch in page]
    document: BatchList = {**page_of([batch["id"] for batch in data], more=more), "data": data}
    return JSONResponse(document)


@router.get("/batches/{batch_id}", summary="Get the status of a batch", responses=BATCH_RESPONSES)
async def get_batch(request: Request, batch_id: str) -> JSONResponse:
    return JSONResponse(_document(await _batches(request).get(owner(request), batch_id)))


@router.post("/batches/{batch_id}/cancel", summary="Cancel a batch and keep its results", responses=BATCH_RESPONSES)
async def cancel_batch(request: Request, batch_id: str) -> JSONResponse:
    batch = await _batches(request).cancel(owner(request), batch_id)
    publish(BatchChanged(batch.id, batch.status))
    _tell_the_runner(request)
    return JSONResponse(_document(batch))


def _batches(request: Request) -> Batches:
    return Batches(served(request).database)


def _tell_the_runner(request: Request) -> None:
    served(request).batches_changed.set()


Known = Literal[
    "in_progress_at",
    "finalizing_at",
    "cancelling_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelled_at",
    "model",
    "output_file_id",
    "error_file_id",
    "metadata",
]
KNOWN: tuple[Known, ...] = get_args(Known)
"""Fields that a batch may not have, or not yet. The store uses the same names."""


def _document(batch: store.Batch) -> Batch:
    """The batch as OpenAI shows it, without the fields that it does not have yet."""
    document: Batch = {
        "id": batch.id,
        "object": "batch",
        "endpoint": cast(BatchEndpoint, batch.endpoint),  # it was checked before it was stored
        "input_file_id": batch.input_file_id,
        "completion_window": cast(Literal["24h"], batch.completion_window),
        "status": batch.status,
        "created_at": batch.created_at,
        "expires_at": batch.expires_at,
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
    }
    for key in KNOWN:
        if (value := getattr(batch, key)) is not None:
            document[key] = value
    if batch.errors is not None:
        document["errors"] = {"object": "list", "data": [_fault(fault) for fault in batch.errors]}
    if batch.in_progress_at is not None:
        document["usage"] = _usage(batch)
    return document


def _fault(fault: dict[str, Any]) -> BatchFault:
    return {"code": fault["code"], "message": fault["message"], "param": fault["param"], "line": fault["line"]}


def _usage(batch: store.Batch) -> BatchUsage:
    return {
        "input_tokens": batch.input_tokens,
        "input_tokens_details": {"cached_tokens": batch.cached_tokens},
        "output_tokens": batch.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": batch.input_tokens + batch.output_tokens,
    }
