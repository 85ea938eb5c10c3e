"""Errors in the caller's dialect, on every path: OpenAI's four keys, below /api/v1 OpenRouter's integer code."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from server.domain.errors import GuardError, InvalidRequest, MethodNotAllowed, UnknownUrl
from server.domain.events import ErrorAnswered, publish

OPENROUTER_PREFIX = "/api/v1"

OPENROUTER_TYPES: dict[str | int, str] = {
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
"""OpenRouter's own word for an error: by our code, else by its status."""


def openai_body(error: GuardError) -> dict[str, Any]:
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def openrouter_body(error: GuardError) -> dict[str, Any]:
    """What OpenRouter has no key for goes into its metadata: its own word for the kind, and our code."""
    by_class = "invalid_request" if error.status < 500 else "server"
    kind = OPENROUTER_TYPES.get(error.code or "") or OPENROUTER_TYPES.get(error.status, by_class)
    known = {"error_type": kind, "code": error.code, "param": error.param}
    metadata = {key: value for key, value in known.items() if value is not None}
    return {"error": {"code": error.status, "message": error.message, "metadata": metadata}}


def error_response(error: GuardError, path: str) -> JSONResponse:
    """The answer to a caller at `path`, told by kind. `x-should-retry` tells OpenAI's clients whether another try
    may help."""
    publish(ErrorAnswered(error.code or error.type, error.status))
    headers = {"x-should-retry": "true" if error.retryable else "false"}
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    is_openrouter = path == OPENROUTER_PREFIX or path.startswith(OPENROUTER_PREFIX + "/")
    body = openrouter_body(error) if is_openrouter else openai_body(error)
    return JSONResponse(body, status_code=error.status, headers=headers)


def install(app: FastAPI) -> None:
    """Route every error of the framework into the same shape."""

    @app.exception_handler(GuardError)
    async def guard_error(request: Request, error: GuardError) -> JSONResponse:
        return error_response(error, request.url.path)

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        # Bodies are read by body.py; this is for paths and queries. The error itself repeats what was sent.
        place, *name = error.errors()[0]["loc"]
        # The names of a query's parameters are the route's; what a path holds is the caller's.
        param = str(name[0]) if place == "query" and name else None
        message = "The request's path or query is not valid. See /docs."
        return error_response(InvalidRequest(message, param=param), request.url.path)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        path = request.url.path
        if error.status_code == 404:
            return error_response(UnknownUrl("There is nothing at this URL. See /docs."), path)
        if error.status_code == 405:
            response = error_response(MethodNotAllowed("This URL does not take that method. See /docs."), path)
            response.headers.update(error.headers or {})
            return response
        return error_response(InvalidRequest("The request cannot be handled."), path)
