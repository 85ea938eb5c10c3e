"""The OpenAPI document: made by FastAPI from the routes, with FastAPI's gaps and errors corrected."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from server.api.names import MODEL, SLUG, ModelNames

Document = dict[str, Any]


def describe(app: FastAPI, names: ModelNames) -> None:
    """Make `app` serve the document of its routes, with the served model's name in the examples."""

    def openapi() -> Document:
        if app.openapi_schema is None:
            app.openapi_schema = _renamed(_document(app), {MODEL: names.id, SLUG: names.slug})
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _document(app: FastAPI) -> Document:
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for route in app.routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            for method in route.methods:
                operation = document["paths"][route.path_format][method.lower()]
                operation["responses"].pop("422", None)  # this server never answers with FastAPI's own 422
                _restore_nulls(operation, route)
                _lift_schemas(operation, route, document["components"]["schemas"])
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    return document


def _restore_nulls(operation: Document, route: APIRoute) -> None:
    """Put the examples of replies back: FastAPI removes every null from them, but replies have nulls."""
    for status, response in route.responses.items():
        described = operation["responses"][str(status)]
        for media_type, content in response.get("content", {}).items():
            if "example" in content:
                described["content"][media_type]["example"] = content["example"]


def _lift_schemas(operation: Document, route: APIRoute, known: Document) -> None:
    """Move the schemas that description.py put into a body to all others in `known`."""
    described = (route.openapi_extra or {}).get("requestBody", {}).get("content", {})
    for media_type, content in described.items():
        operation["requestBody"]["content"][media_type]["schema"].pop("$defs", None)
        for name, schema in content["schema"].get("$defs", {}).items():
            assert known.setdefault(name, schema) == schema, f"two schemas are called {name}"


def _renamed(value: Any, names: dict[str, str]) -> Any:
    """A copy of `value` in which each name in a string is replaced by the one it maps to."""
    if isinstance(value, dict):
        return {key: _renamed(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    if isinstance(value, str):
        for name, other in names.items():
            value = value.replace(name, other)
    return value
