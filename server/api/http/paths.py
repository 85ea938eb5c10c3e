"""Paths: values that hold for a path and all below it, and paths that a client makes up from its base URL."""

from collections.abc import Mapping
from typing import TypeVar

from starlette.types import ASGIApp, Receive, Scope, Send

Value = TypeVar("Value")


def most_specific(path: str, values: Mapping[str, Value]) -> Value | None:
    """The value of the longest path in `values` that `path` equals or lies below. None if there is no such path."""
    above = [place for place in values if path == place or path.startswith(place + "/")]
    return values[max(above, key=len)] if above else None


GROQ_PREFIX = "/openai"
"""Groq's client puts `/openai/v1` behind its base URL, and cannot be told not to."""


class ClientPaths:
    """The outermost layer, so that all within it know one name of each path: doors, routes, errors and metrics."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(f"{GROQ_PREFIX}/v1/"):
            raw_path = scope.get("raw_path") or scope["path"].encode()
            scope = {
                **scope,
                "path": scope["path"].removeprefix(GROQ_PREFIX),
                "raw_path": raw_path.removeprefix(GROQ_PREFIX.encode()),
            }
        await self._app(scope, receive, send)
