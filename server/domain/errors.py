"""Every error that a caller can be told of, and the one for operators.

The tree is the documentation: each class carries what the wire needs (HTTP status, OpenAI's `type` and
`code`) and whether the same request may succeed when it is sent again. Messages never repeat what the
caller wrote: they may be logged.
"""

from typing import ClassVar, Self

from server.domain.aio import fresh


class OperatorError(Exception):
    """A command cannot do what it was told, or the server cannot start. The message is for the operator."""


class GuardError(Exception):
    """Base of all errors that are answered to a caller.

    `param` names the field at fault (OpenAI's `param`), `retry_after` the seconds to wait before another try.
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
        """The same error with `param` as the field at fault. A copy, since others may be told of this one."""
        error = fresh(self)
        error._param = param
        return error


# --- The caller's mistakes -------------------------------------------------------------------------------


class InvalidRequest(GuardError):
    """The request breaks the wire contract, or asks for something that this server does not do."""

    status = 400
    type = "invalid_request_error"


class NothingToJudge(InvalidRequest):
    """The judged turn has neither text nor an image."""

    code = "empty_input"


class ContextLengthExceeded(InvalidRequest):
    """The prompt is longer than the model's context. It is never cut."""

    code = "context_length_exceeded"


class TooManyImages(InvalidRequest):
    """More images, sampled animation frames included, than one request may hold."""

    code = "too_many_images"


class ImagesUnseen(TooManyImages):
    """A picture for a model that sees none: any number is too many, unless the operator has the text alone judged."""

    code = "images_unseen"


class ImageTooLarge(InvalidRequest):
    """An image passes the bound on bytes, pixels or decoding time."""

    code = "image_too_large"


class InvalidImage(InvalidRequest):
    """Not a picture that can be decoded, or not one of the accepted formats."""

    code = "invalid_value"


class RemoteImagesDisabled(InvalidRequest):
    """An http(s) image URL, while fetching is switched off."""

    code = "remote_images_disabled"


class RemoteRefused(InvalidRequest):
    """Only a remote backend is there, and it may not be given this request, or could not judge it as asked."""

    code = "remote_refused"


class InvalidApiKey(InvalidRequest):
    """No key, or one that is wrong, expired or revoked."""

    status = 401
    code = "invalid_api_key"


class CrossSite(InvalidRequest):
    """A page of another site had a browser ask a server that asks nobody for a key."""

    status = 403
    code = "cross_site"


class MissingScope(InvalidRequest):
    """The key is valid, but not for what this URL does."""

    status = 403
    code = "missing_scope"


class NotFound(InvalidRequest):
    """There is no such file or batch, or it is somebody else's."""

    status = 404
    code = "not_found"


class Conflict(InvalidRequest):
    """What is asked for does not go with the state that a file or a batch is in."""

    status = 409
    code = "conflict"


class RequestTooLarge(InvalidRequest):
    """The body is larger than the server reads."""

    status = 413
    code = "request_too_large"


class RequestTimeout(InvalidRequest):
    """The body was sent too slowly."""

    status = 408
    code = "request_timeout"
    retryable = True


class ModelNotFound(InvalidRequest):
    """The `model` field names something else than what is served."""

    status = 404
    code = "model_not_found"


class GenerationNotFound(InvalidRequest):
    """No answer of this caller with this id is remembered."""

    status = 404
    code = "generation_not_found"


class UnknownUrl(InvalidRequest):
    """No route has this path."""

    status = 404
    code = "unknown_url"


class MethodNotAllowed(InvalidRequest):
    """The path exists, but not with this method."""

    status = 405
    code = "method_not_allowed"


# --- The server's condition ------------------------------------------------------------------------------


class Overloaded(GuardError):
    """The queue is full. Nothing of the request was computed."""

    status = 429
    type = "requests"
    code = "rate_limit_exceeded"
    retryable = True


class RequestLimitReached(Overloaded):
    """The key has used up its requests of this minute."""


class TokenLimitReached(Overloaded):
    """The key has used up its tokens of this minute."""

    type = "tokens"


class KeysUnavailable(GuardError):
    """The database does not say which keys are valid, so nobody is let in."""

    status = 503
    code = "keys_unavailable"
    retryable = True


class ShuttingDown(GuardError):
    """The server drains and takes nothing new."""

    status = 503
    code = "shutting_down"
    retryable = True


class StoreUnavailable(GuardError):
    """The database failed: full, locked, read-only or out of reach. What was asked for was not done."""

    status = 503
    code = "store_unavailable"
    retryable = True


class EngineUnavailable(GuardError):
    """The engine is dead, or not yet ready."""

    status = 503
    code = "engine_unavailable"
    retryable = True


class DeadlineExceeded(GuardError):
    """No verdict came within the request's deadline; its work was aborted."""

    status = 504
    code = "deadline_exceeded"
    retryable = True


class EngineFailure(GuardError):
    """The engine ended this request without a usable completion."""

    status = 500
    code = "engine_failure"
    retryable = True


class RemoteFailure(GuardError):
    """The remote backend could not be reached, failed, or answered what is no answer."""

    status = 502
    code = "remote_failure"
    retryable = True


class RemoteRejected(GuardError):
    """The remote backend does not take this request: its key, its credit, its rules. It would not take it again."""

    status = 502
    code = "remote_rejected"


class UnparseableVerdict(GuardError):
    """The model's answer is no verdict. Asking again would give the same answer."""

    status = 500
    code = "unparseable_verdict"


class InternalError(GuardError):
    """A defect of this server. Details are in its log, never in the answer."""

    status = 500
    code = "internal_error"
