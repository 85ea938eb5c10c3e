"""Descriptions of bodies, replies and errors with worked examples, in the form that FastAPI's routes take.

api/openapi.py makes the OpenAPI document from the routes.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.api.http.errors import Error

_REFERENCE = "#/components/schemas/{model}"

Responses = dict[int | str, dict[str, Any]]
"""FastAPI's `responses` of a route, by status."""

Examples = Mapping[str, tuple[str, object]]
"""Examples of a body by name: a summary, and the body."""


def json_body(model: type[BaseModel], examples: Examples) -> dict[str, Any]:
    """`openapi_extra` of a route whose body is `model`. FastAPI does not know the body, because body.py reads it."""
    _, schemas = models_json_schema([(model, "validation")], ref_template=_REFERENCE)
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": _REFERENCE.format(model=model.__name__), **schemas},
                    "examples": {
                        name: {"summary": summary, "value": body} for name, (summary, body) in examples.items()
                    },
                }
            },
        }
    }


def reply(kind: Any, description: str, example: object = None, *, events: str | None = None) -> dict[str, Any]:
    """One entry of `responses`: JSON of type `kind`. `events` is an example of the same reply as a stream."""
    content: dict[str, Any] = {}
    if example is not None:
        content["application/json"] = {"example": example}
    if events is not None:
        content["text/event-stream"] = {"example": events}
    return {"model": kind, "description": description, "content": content}


def error(description: str, type_: str, code: str | None, message: str, param: str | None = None) -> dict[str, Any]:
    """One entry of `responses`: an error in the usual shape."""
    example: Error = {"error": {"message": message, "type": type_, "param": param, "code": code}}
    return reply(Error, description, example)


TOO_LARGE: Responses = {
    413: error("The body is too large", "invalid_request_error", "request_too_large", "The request body is too large.")
}

ERRORS: Responses = {
    400: error(
        "The request is wrong", "invalid_request_error", "empty_input", "There is no message to judge.", "messages"
    ),
    404: error("Not the served model", "invalid_request_error", "model_not_found", "The model does not exist here."),
    **TOO_LARGE,
    429: error("The queue is full; see Retry-After", "requests", "rate_limit_exceeded", "The server is at its limit."),
    500: error(
        "The model's answer is not a verdict", "server_error", "unparseable_verdict", "The answer is not a verdict."
    ),
    502: error("A remote backend failed", "server_error", "remote_failure", "The remote backend failed."),
    503: error("The engine cannot answer", "server_error", "engine_unavailable", "The engine is not running."),
    504: error("No verdict in time", "server_error", "deadline_exceeded", "No verdict within 60 seconds."),
}
"""The errors of every route that judges."""

PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
"""The picture of the examples."""
