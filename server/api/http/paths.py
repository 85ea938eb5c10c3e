"""Paths: those that a client makes out of its base URL by itself, and what is said of all paths below one."""

from collections.abc import Mapping
from typing import TypeVar

from starlette.types import ASGIApp, Receive, Scope, Send

Said = TypeVar("Said")


def said_of(path: str, places: Mapping[str, Said]) -> Said | None:
    """What the longest of `places` that `path` is or lies below says; None where it lies below none of them."""
    above = [place for place in places if path == place or path.startswith(place + "/")]
    return places[max(above, key=len)] if above else None


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
