"""Files and batches: what has not happened to one is left out."""

from typing import Literal

from server.api.replies.base import ABSENT, Count, Moment, ReplyModel
from server.api.replies.openai import OutputTokensDetails


class File(ReplyModel):
    id: str
    object: Literal["file"]
    bytes: Count
    created_at: Moment
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"]
    expires_at: Moment = ABSENT


class FileList(ReplyModel):
    """The ids are empty texts where the page is empty."""

    object: Literal["list"]
    data: list[File]
    first_id: str
    last_id: str
    has_more: bool


class FileDeleted(ReplyModel):
    id: str
    object: Literal["file"]
    deleted: Literal[True]


class RequestCounts(ReplyModel):
    total: Count
    completed: Count
    failed: Count


class BatchFault(ReplyModel):
    """Why a batch failed before any of it was judged. `line` counts from 1."""

    code: str
    message: str
    param: str | None
    line: int | None


class BatchFaults(ReplyModel):
    object: Literal["list"]
    data: list[BatchFault]


class CachedTokens(ReplyModel):
    cached_tokens: Count


class BatchUsage(ReplyModel):
    input_tokens: Count
    input_tokens_details: CachedTokens
    output_tokens: Count
    output_tokens_details: OutputTokensDetails
    total_tokens: Count


class Batch(ReplyModel):
    id: str
    object: Literal["batch"]
    endpoint: Literal["/v1/moderations", "/v1/chat/completions", "/v1/responses"]
    input_file_id: str
    completion_window: Literal["24h"]
    status: Literal[
        "validating", "in_progress", "finalizing", "cancelling", "completed", "failed", "expired", "cancelled"
    ]
    created_at: Moment
    expires_at: Moment
    request_counts: RequestCounts
    in_progress_at: Moment = ABSENT
    finalizing_at: Moment = ABSENT
    cancelling_at: Moment = ABSENT
    completed_at: Moment = ABSENT
    failed_at: Moment = ABSENT
    expired_at: Moment = ABSENT
    cancelled_at: Moment = ABSENT
    model: str = ABSENT
    output_file_id: str = ABSENT
    error_file_id: str = ABSENT
    errors: BatchFaults = ABSENT
    metadata: dict[str, str] = ABSENT
    usage: BatchUsage = ABSENT


class BatchList(ReplyModel):
    """The ids are empty texts where the page is empty."""

    object: Literal["list"]
    data: list[Batch]
    first_id: str
    last_id: str
    has_more: bool
