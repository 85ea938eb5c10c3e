"""Errors on every path, in the shape of the dialect that owns the path."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from server.api.http.paths import most_specific
from server.api.http.shapes import Closed
from server.domain.errors import GuardError, InvalidRequest, MethodNotAllowed, UnknownUrl
from server.domain.events import ErrorAnswered, publish


class ErrorDetail(Closed):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(Closed):
    """OpenAI's error."""

    error: ErrorDetail


def error_body(error: GuardError) -> Error:
    """The body on every path whose dialect has no shape of its own."""
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


@dataclass(frozen=True, slots=True)
class ErrorShape:
    """How a dialect writes errors: `body` makes the JSON body of one, `type` is the type of these bodies."""

    body: Callable[[GuardError], Mapping[str, object]]
    type: type

    @property
    def responses(self) -> dict[int | str, dict[str, Any]]:
        """FastAPI's `responses` for the errors that a route does not name itself."""
        return {"default": {"model": self.type, "description": "Any other error"}}


USUAL = ErrorShape(error_body, Error)


class ErrorShapes:
    """The shape of errors at each path."""

    def __init__(self, shapes: Mapping[str, ErrorShape]) -> None:
        """`shapes` maps a path to the shape of errors there and below. All other paths have USUAL."""
        self._shapes = dict(shapes)

    def at(self, path: str) -> ErrorShape:
        return most_specific(path, self._shapes) or USUAL

    def response(self, error: GuardError, path: str) -> JSONResponse:
        """The answer to a caller at `path`, told by kind. `x-should-retry` tells OpenAI's clients whether another
        try may help."""
        publish(ErrorAnswered(error.code or error.type, error.status))
        headers = {"x-should-retry": "true" if error.retryable else "false"}
        if error.retry_after is not None:
            headers["retry-after"] = str(error.retry_after)
        if error.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse(self.at(path).body(error), status_code=error.status, headers=headers)


def install(app: FastAPI, shapes: ErrorShapes) -> None:
    """Route every error of the framework into these shapes."""

    @app.exception_handler(GuardError)
    async def guard_error(request: Request, error: GuardError) -> JSONResponse:
        return shapes.response(error, request.url.path)

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        # Bodies are read by body.py; this is for paths and queries. The error itself repeats what was sent.
        place, *name = error.errors()[0]["loc"]
        # The names of a query's parameters are the route's; what a path holds is the caller's.
        param = str(name[0]) if place == "query" and name else None
        message = "The request's path or query is not valid. See /docs."
        return shapes.response(InvalidRequest(message, param=param), request.url.path)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        path = request.url.path
        if error.status_code == 404:
            return shapes.response(UnknownUrl("There is nothing at this URL. See /docs."), path)
        if error.status_code == 405:
            response = shapes.response(MethodNotAllowed("This URL does not take that method. See /docs."), path)
            response.headers.update(error.headers or {})
            return response
        return shapes.response(
            InvalidRequest("The server cannot process this request. See /docs for what it accepts."), path
        )
