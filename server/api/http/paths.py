"""Paths: values that apply to a path and all paths below it, and prefixes that clients add on their own."""

from collections.abc import Mapping
from typing import TypeVar

from starlette.types import ASGIApp, Receive, Scope, Send

Value = TypeVar("Value")


def most_specific(path: str, values: Mapping[str, Value]) -> Value | None:
    """The value of the longest path in `values` that `path` equals or lies below. None if there is no such path."""
    above = [place for place in values if path == place or path.startswith(place + "/")]
    return values[max(above, key=len)] if above else None


PREFIXES = ("/openai/v1/", "/v1/openai/v1/")
"""Groq's client adds `/openai/v1` to its base URL, and older clients of Llama Stack add `/v1/openai/v1`. Neither has an
option against it."""

PREFIX = "/v1/"


class ClientPaths:
    """The outermost layer, so that access control, routes, errors and metrics all see one name for each path."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            for prefix in PREFIXES:
                if scope["path"].startswith(prefix):
                    scope = _renamed(scope, prefix)
                    break
        await self._app(scope, receive, send)


def _renamed(scope: Scope, prefix: str) -> Scope:
    """The scope of a request with PREFIX in place of `prefix`."""
    raw_path = scope.get("raw_path") or scope["path"].encode()
    return {
        **scope,
        "path": PREFIX + scope["path"].removeprefix(prefix),
        "raw_path": PREFIX.encode() + raw_path.removeprefix(prefix.encode()),
    }
