"""Errors in OpenRouter's format: an integer code, and metadata for everything that the format has no key for."""

from typing import NotRequired

from server.api.http.description import Responses, reply
from server.api.http.errors import ErrorShape
from server.api.http.shapes import Closed
from server.domain.errors import GuardError

TYPES: dict[str | int, str] = {
    "context_length_exceeded": "context_length_exceeded",
    "image_too_large": "image_too_large",
    "invalid_value": "invalid_image",
    "remote_images_disabled": "invalid_image",
    "engine_unavailable": "provider_unavailable",
    "shutting_down": "provider_unavailable",
    "deadline_exceeded": "timeout",
    401: "authentication",
    403: "permission_denied",
    404: "not_found",
    408: "timeout",
    413: "payload_too_large",
    429: "rate_limit_exceeded",
}
"""OpenRouter's name for a kind of error: by our code, otherwise by the status."""


class OpenRouterErrorMetadata(Closed):
    """OpenRouter's name for the kind, and this server's code and the field at fault, if the error has them."""

    error_type: str
    code: NotRequired[str]
    param: NotRequired[str]


class OpenRouterErrorDetail(Closed):
    code: int
    message: str
    metadata: OpenRouterErrorMetadata


class OpenRouterError(Closed):
    """OpenRouter's error, whose code is the status."""

    error: OpenRouterErrorDetail


def error_body(error: GuardError) -> OpenRouterError:
    by_class = "invalid_request" if error.status < 500 else "server"
    kind = TYPES.get(error.code or "") or TYPES.get(error.status, by_class)
    metadata: OpenRouterErrorMetadata = {"error_type": kind}
    if error.code is not None:
        metadata["code"] = error.code
    if error.param is not None:
        metadata["param"] = error.param
    return {"error": {"code": error.status, "message": error.message, "metadata": metadata}}


SHAPE = ErrorShape(error_body, OpenRouterError)


def _example(description: str, status: int, message: str, metadata: OpenRouterErrorMetadata) -> Responses:
    example: OpenRouterError = {"error": {"code": status, "message": message, "metadata": metadata}}
    return {status: reply(OpenRouterError, description, example)}


NOT_FOUND = _example("Not found", 404, "The model does not exist here.", {"error_type": "not_found"})
BAD_QUERY = _example(
    "The query is wrong", 400, "The request's path or query is not valid.", {"error_type": "invalid_request"}
)

ERRORS: Responses = {
    **_example(
        "The request is wrong",
        400,
        "There is no message to judge.",
        {"error_type": "invalid_request", "param": "messages"},
    ),
    **NOT_FOUND,
    **_example("The body is too large", 413, "The request body is too large.", {"error_type": "payload_too_large"}),
    **_example(
        "The queue is full; see Retry-After", 429, "The server is at its limit.", {"error_type": "rate_limit_exceeded"}
    ),
    **_example(
        "The model's answer is not a verdict",
        500,
        "The answer is not a verdict.",
        {"error_type": "server", "code": "unparseable_verdict"},
    ),
    **_example("The engine cannot answer", 503, "The engine is not running.", {"error_type": "provider_unavailable"}),
    **_example("No verdict in time", 504, "No verdict within 60 seconds.", {"error_type": "timeout"}),
}
"""The errors of every route that judges."""
