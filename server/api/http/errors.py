"""Errors on every path, in the shape of the dialect that owns the path."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from server.api.http.methods import allowed_methods
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
    """The body on every path whose dialect does not have its own shape."""
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def error_headers(error: GuardError) -> dict[str, str]:
    """The headers of an error in every shape. `x-should-retry` tells OpenAI's clients whether another try may help."""
    headers = {"x-should-retry": "true" if error.retryable else "false"}
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


@dataclass(frozen=True, slots=True)
class ErrorShape:
    """How a dialect writes errors: `body` makes the JSON body of an error, `type` is the type of such bodies."""

    body: Callable[[GuardError], Mapping[str, object]]
    type: type

    @property
    def responses(self) -> dict[int | str, dict[str, Any]]:
        """FastAPI's `responses` for the errors that a route does not list itself."""
        return {"default": {"model": self.type, "description": "Any other error"}}


USUAL = ErrorShape(error_body, Error)


class ErrorShapes:
    """The shape of errors at each path."""

    def __init__(self, shapes: Mapping[str, ErrorShape]) -> None:
        """`shapes` maps a path to the shape of errors on it and all paths below it. All other paths have USUAL."""
        self._shapes = dict(shapes)

    def at(self, path: str) -> ErrorShape:
        return most_specific(path, self._shapes) or USUAL

    def response(self, error: GuardError, path: str) -> JSONResponse:
        """The response to a request for `path`; publishes the error's kind."""
        publish(ErrorAnswered(error.code or error.type, error.status))
        return JSONResponse(self.at(path).body(error), status_code=error.status, headers=error_headers(error))


def install(app: FastAPI, shapes: ErrorShapes) -> None:
    """Answer every error of the framework in these shapes too."""

    @app.exception_handler(GuardError)
    async def guard_error(request: Request, error: GuardError) -> JSONResponse:
        return shapes.response(error, request.url.path)

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> JSONResponse:
        # Only paths and queries come here: body.py reads bodies. The error itself would repeat the caller's values.
        place, *name = error.errors()[0]["loc"]
        # The route names the parameters of a query, so they hold no content. A path may hold some.
        param = str(name[0]) if place == "query" and name else None
        message = "The request's path or query is not valid. See /docs for what this URL accepts."
        return shapes.response(InvalidRequest(message, param=param), request.url.path)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        path = request.url.path
        if error.status_code == 404:
            return shapes.response(UnknownUrl("There is nothing at this URL. See /docs for the paths."), path)
        if error.status_code == 405:
            response = shapes.response(
                MethodNotAllowed("This URL does not accept that method. The header Allow lists those it does."), path
            )
            response.headers["allow"] = allowed_methods(request.app.routes, request.scope)
            return response
        return shapes.response(
            InvalidRequest("The server cannot process this request. See /docs for what it accepts."), path
        )
