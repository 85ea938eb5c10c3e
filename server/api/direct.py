"""What FastAPI does for every request and judging needs nothing of: dependencies solved, and JSON by Python's own."""

from typing import Any

import orjson
from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send


class DirectRoute(APIRoute):
    """A route, described like any other, whose endpoint takes the request alone and is called as it is."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            response: Response = await self.endpoint(Request(scope, receive, send))
            await response(scope, receive, send)

        self.app = app


class JSONReply(Response):
    """A document as the body of a 200."""

    media_type = "application/json"

    def __init__(self, document: dict[str, Any]) -> None:
        super().__init__(orjson.dumps(document))
