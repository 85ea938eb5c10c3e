"""Every error that a caller can get, and the one for operators.

The tree is the documentation: each class has the fields for the wire (HTTP status, OpenAI's `type` and `code`), and
says whether the same request may succeed if it is sent again. Messages may be logged, so they never repeat content.
"""

from typing import ClassVar, Self

from server.domain.aio import fresh


class OperatorError(Exception):
    """A command cannot do its work, or the server cannot start. The message is for the operator."""


class GuardError(Exception):
    """Base of all errors that go to callers.

    `param` names the field at fault (OpenAI's `param`). `retry_after` is the number of seconds to wait before a retry.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: ClassVar[str | None] = None
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self._param = param
        self.retry_after = retry_after

    @property
    def param(self) -> str | None:
        return self._param

    def at(self, param: str) -> Self:
        """The same error with `param` as the field at fault. A copy, since other callers may get this error too."""
        error = fresh(self)
        error._param = param
        return error


# --- The caller's mistakes -------------------------------------------------------------------------------


class InvalidRequest(GuardError):
    """The request is not valid, or asks for something that this server does not do."""

    status = 400
    type = "invalid_request_error"


class NothingToJudge(InvalidRequest):
    """The turn to judge has neither text nor an image."""

    code = "empty_input"


class ContextLengthExceeded(InvalidRequest):
    """The prompt is longer than the model's context. It is never cut."""

    code = "context_length_exceeded"


class TooManyImages(InvalidRequest):
    """More images, sampled animation frames included, than one request may hold."""

    code = "too_many_images"


class ImagesUnseen(TooManyImages):
    """A picture for a model that sees none. Any number is too many, unless the operator has only the text judged."""

    code = "images_unseen"


class ImageTooLarge(InvalidRequest):
    """An image exceeds the limit on bytes, pixels or decoding time."""

    code = "image_too_large"


class InvalidImage(InvalidRequest):
    """The image cannot be decoded, or its format is not accepted."""

    code = "invalid_value"


class RemoteImagesDisabled(InvalidRequest):
    """The image has an http(s) URL, but fetching is turned off."""

    code = "remote_images_disabled"


class RemoteRefused(InvalidRequest):
    """Only a remote backend could judge this request, but it may not get it, or cannot judge it as requested."""

    code = "remote_refused"


class InvalidApiKey(InvalidRequest):
    """There is no key, or it is wrong, expired or revoked."""

    status = 401
    code = "invalid_api_key"


class CrossSite(InvalidRequest):
    """A page of another site made a browser send a request to a server without keys."""

    status = 403
    code = "cross_site"


class MissingScope(InvalidRequest):
    """The key is valid, but does not have the right to use this URL."""

    status = 403
    code = "missing_scope"


class NotFound(InvalidRequest):
    """There is no such file or batch, or it belongs to another caller."""

    status = 404
    code = "not_found"


class Conflict(InvalidRequest):
    """The current state of the file or batch does not allow this operation."""

    status = 409
    code = "conflict"


class InvalidHttp(InvalidRequest):
    """The request is not HTTP/1.1 as this server reads it."""

    code = "invalid_http"


class HeadTooLarge(InvalidRequest):
    """The request line and the headers are larger than the limit, or there are too many headers."""

    status = 431
    code = "request_header_fields_too_large"


class ForeignHost(InvalidRequest):
    """The request names a host that this server does not serve, or comes from a page of another origin."""

    status = 403
    code = "foreign_host"


class UnsupportedEncoding(InvalidRequest):
    """The body is compressed or encoded in a way that this server does not read."""

    status = 415
    code = "unsupported_encoding"


class RequestTooLarge(InvalidRequest):
    """The body is larger than the limit."""

    status = 413
    code = "request_too_large"


class RequestTimeout(InvalidRequest):
    """The body arrived too slowly."""

    status = 408
    code = "request_timeout"
    retryable = True


class ModelNotFound(InvalidRequest):
    """The `model` field names a model that is not served here."""

    status = 404
    code = "model_not_found"


class GenerationNotFound(InvalidRequest):
    """The server remembers no reply to this caller with this id."""

    status = 404
    code = "generation_not_found"


class UnknownUrl(InvalidRequest):
    """There is no route with this path."""

    status = 404
    code = "unknown_url"


class MethodNotAllowed(InvalidRequest):
    """The path exists, but not with this method."""

    status = 405
    code = "method_not_allowed"


# --- The server's condition ------------------------------------------------------------------------------


class Overloaded(GuardError):
    """The queue is full. No part of the request was computed."""

    status = 429
    type = "requests"
    code = "rate_limit_exceeded"
    retryable = True


class RequestLimitReached(Overloaded):
    """The key has used up its requests of this minute."""


class TokenLimitReached(Overloaded):
    """The key has used up its tokens of this minute."""

    type = "tokens"


class QuotaExceeded(GuardError):
    """The key has as much stored here as it may. Nothing was changed."""

    status = 429
    type = "insufficient_quota"
    code = "insufficient_quota"


class TooManyBatches(QuotaExceeded):
    """So many batches of the key have not ended that no new one may begin."""


class TooManyBytes(QuotaExceeded):
    """The key's files hold so many bytes that no new one fits."""


class TooManyConnections(GuardError):
    """There are as many connections as the limit on open files allows, and none of them is idle."""

    status = 503
    code = "too_many_connections"
    retryable = True


class OutOfMemory(GuardError):
    """The server had no memory left for an image within the limits."""

    status = 503
    code = "out_of_memory"
    retryable = True


class KeysUnavailable(GuardError):
    """The database cannot be asked which keys are valid, so every key is refused."""

    status = 503
    code = "keys_unavailable"
    retryable = True


class ShuttingDown(GuardError):
    """The server is draining and accepts no new requests."""

    status = 503
    code = "shutting_down"
    retryable = True


class StoreUnavailable(GuardError):
    """The database failed: it is full, locked, read-only or unreachable. Nothing was changed."""

    status = 503
    code = "store_unavailable"
    retryable = True


class AuditUnavailable(GuardError):
    """The audit trail cannot be written, and the operator wants no verdict without its record."""

    status = 503
    code = "audit_unavailable"
    retryable = True


class EngineUnavailable(GuardError):
    """The engine is dead, or not yet ready."""

    status = 503
    code = "engine_unavailable"
    retryable = True


class DeadlineExceeded(GuardError):
    """There was no verdict within the deadline, and the work was aborted."""

    status = 504
    code = "deadline_exceeded"
    retryable = True


class EngineFailure(GuardError):
    """The engine ended this request without a usable completion."""

    status = 500
    code = "engine_failure"
    retryable = True


class RemoteFailure(GuardError):
    """The remote backend could not be reached, failed, or gave no usable answer."""

    status = 502
    code = "remote_failure"
    retryable = True


class RemoteRejected(GuardError):
    """The remote backend rejects this request for its key, its credit or its rules. It would reject it again."""

    status = 502
    code = "remote_rejected"


class UnparseableVerdict(GuardError):
    """The model's answer is not a verdict. To ask again would give the same answer."""

    status = 500
    code = "unparseable_verdict"


class InternalError(GuardError):
    """A defect of this server. Details are in its log, never in the response."""

    status = 500
    code = "internal_error"


SERVERS_CONDITION = (AuditUnavailable, EngineUnavailable, Overloaded, ShuttingDown, StoreUnavailable)
"""Errors that say nothing about the request: any other one would fail as well now."""
