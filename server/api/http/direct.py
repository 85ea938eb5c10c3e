"""A shortcut to the routes that judge.

They skip all that FastAPI does for a request: the search through the routes, dependencies, context stacks, and Python's
JSON encoder. benchmarks/NOTEBOOK.md says how much time that saves.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send


class DirectRoute(APIRoute):
    """A POST to one fixed path, described like any other route. Its endpoint takes only the request.

    `middleware.py` finds its `app` by the path and calls it, as the router would.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            response: Response = await self.endpoint(Request(scope, receive, send))
            await response(scope, receive, send)

        self.app = app


def direct_apps(routes: Iterable[BaseRoute]) -> dict[str, ASGIApp]:
    """The direct routes among `routes`, by their path."""
    return {route.path: route.app for route in routes if isinstance(route, DirectRoute)}


class JSONReply(Response):
    """A document as the body of a 200."""

    media_type = "application/json"

    def __init__(self, document: Mapping[str, object]) -> None:
        super().__init__(orjson.dumps(document))
