"""/v1/batches in OpenAI's dialect. The work on them is done by server.batches.runner."""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse
from pydantic import Field, field_validator

from server.api import moderations
from server.api.content import WireModel
from server.api.examples import BATCH_EXAMPLES, BATCH_LIST_RESPONSES, BATCH_RESPONSES, json_request
from server.api.http.body import read_body
from server.api.openai import chat, responses
from server.api.openai.files import ExpiresAfter, check_cursor, listed, owner
from server.api.service import Endpoint, handling_of
from server.domain.events import BatchChanged, publish
from server.store.batches import Batch, Batches, Status
from server.store.ids import Kind

router = APIRouter(prefix="/v1", tags=["batches"])

ENDPOINTS: dict[str, Endpoint[Any]] = {
    endpoint.path: endpoint
    for endpoint in (
        moderations.ENDPOINT,
        chat.ENDPOINT,
        responses.ENDPOINT,
    )
}
"""What the lines of a batch may be sent to."""


class BatchRequest(WireModel):
    input_file_id: str
    endpoint: str = Field(description="Where every line goes.", json_schema_extra={"enum": list(ENDPOINTS)})
    completion_window: Literal["24h"]
    metadata: dict[str, str] | None = Field(None, description="Up to 16 pairs, 64 characters to 512.")
    output_expires_after: ExpiresAfter | None = None

    @field_validator("endpoint")
    @classmethod
    def _refuse_other_endpoints(cls, endpoint: str) -> str:
        if endpoint not in ENDPOINTS:
            raise ValueError(f"it must be one of {', '.join(ENDPOINTS)}")
        return endpoint

    @field_validator("metadata")
    @classmethod
    def _bound_metadata(cls, metadata: dict[str, str] | None) -> dict[str, str] | None:
        if metadata is not None and len(metadata) > 16:
            raise ValueError("it may hold at most 16 pairs")
        if any(len(key) > 64 or len(value) > 512 for key, value in (metadata or {}).items()):
            raise ValueError("a key may have at most 64 characters and a value 512")
        return metadata


@router.post(
    "/batches",
    summary="Judge the lines of a file in the background",
    openapi_extra=json_request(BatchRequest, BATCH_EXAMPLES),
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
    )
    publish(BatchChanged(batch.id, batch.status))
    _tell_the_runner(request)
    return JSONResponse(_document(batch))


@router.get(
    "/batches",
    summary="List batches, the newest first",
    responses=BATCH_LIST_RESPONSES,
)
async def list_batches(
    request: Request, limit: Annotated[int, Query(ge=1, le=100)] = 20, after: str | None = None
) -> JSONResponse:
    check_cursor(Kind.BATCH, after)
    page, more = await _batches(request).page(owner(request), after=after, limit=limit)
    return listed(page, more, _document)


@router.get("/batches/{batch_id}", summary="See how far a batch is", responses=BATCH_RESPONSES)
async def get_batch(request: Request, batch_id: str) -> JSONResponse:
    return JSONResponse(_document(await _batches(request).get(owner(request), batch_id)))


@router.post("/batches/{batch_id}/cancel", summary="Stop a batch and keep what is done", responses=BATCH_RESPONSES)
async def cancel_batch(request: Request, batch_id: str) -> JSONResponse:
    batch = await _batches(request).cancel(owner(request), batch_id)
    publish(BatchChanged(batch.id, batch.status))
    _tell_the_runner(request)
    return JSONResponse(_document(batch))


def _batches(request: Request) -> Batches:
    found: Batches = request.app.state.batches
    return found


def _tell_the_runner(request: Request) -> None:
    changed: asyncio.Event = request.app.state.batches_changed
    changed.set()


def _document(batch: Batch) -> dict[str, Any]:
    """As OpenAI shows it: what has not happened is left out."""
    optional = {
        **{f"{status}_at": getattr(batch, f"{status}_at", None) for status in Status},
        "model": batch.model,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "errors": None if batch.errors is None else {"object": "list", "data": batch.errors},
        "metadata": batch.metadata,
        "usage": _usage(batch) if batch.in_progress_at else None,
    }
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": batch.status,
        "created_at": batch.created_at,
        "expires_at": batch.expires_at,
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        **{name: value for name, value in optional.items() if value is not None},
    }


def _usage(batch: Batch) -> dict[str, Any]:
    return {
        "input_tokens": batch.input_tokens,
        "input_tokens_details": {"cached_tokens": batch.cached_tokens},
        "output_tokens": batch.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": batch.input_tokens + batch.output_tokens,
    }
