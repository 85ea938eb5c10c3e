"""Errors as OpenAI's clients expect them: one shape, four keys, on every path."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from server import metrics
from server.errors import GuardError, InvalidRequest, MethodNotAllowed, UnknownUrl


def error_body(error: GuardError) -> dict[str, Any]:
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def error_response(error: GuardError) -> JSONResponse:
    """The answer to a caller, counted by kind. `x-should-retry` tells OpenAI's clients whether another try may help."""
    metrics.ERRORS.labels(error.code or error.type).inc()
    headers = {"x-should-retry": "true" if error.retryable else "false"}
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    return JSONResponse(error_body(error), status_code=error.status, headers=headers)


def install(app: FastAPI) -> None:
    """Route every error of the framework into the same shape."""

    @app.exception_handler(GuardError)
    async def guard_error(_: Request, error: GuardError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def validation_error(_: Request, error: RequestValidationError) -> JSONResponse:
        # Bodies are read by api/body.py; this is for paths and queries. The error itself repeats what was sent.
        return error_response(InvalidRequest("The request's path or query is not valid. See /docs."))

    @app.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 404:
            return error_response(UnknownUrl("There is nothing at this URL. See /docs."))
        if error.status_code == 405:
            response = error_response(MethodNotAllowed("This URL does not take that method. See /docs."))
            response.headers.update(error.headers or {})
            return response
        return error_response(InvalidRequest("The request cannot be handled."))
