"""The only module that talks to OpenRouter: kept connections, bounded answers, no redirects and no logs."""

import asyncio
import logging
import time
from dataclasses import dataclass
from urllib.parse import quote

import httpx

from server.backends.openrouter.retries import retry_after
from server.settings import Settings

MAX_ANSWER_BYTES = 2**18
"""The limit for an answer, which takes about a kilobyte."""

MAX_DOCUMENT_BYTES = 2**22
"""The limit for a model's list of providers."""

CONNECT_S = 5.0


class Unreachable(Exception):
    """There was no complete answer: no connection, a broken one, or an answer that is too slow or too large."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete HTTP response. `retry_after` is in seconds."""

    status: int
    content_type: str
    retry_after: float | None
    body: bytes


class OpenRouterClient:
    """Create and `close` it on the event loop that uses it."""

    def __init__(self, settings: Settings) -> None:
        headers = {
            "Authorization": f"Bearer {settings.openrouter_api_key.get_secret_value()}",
            "User-Agent": "llama-guard-server",
            "Accept": "application/json, text/event-stream",
            # A compressed answer may be small on the wire and large in memory.
            "Accept-Encoding": "identity",
        }
        named = {"HTTP-Referer": settings.openrouter_referer, "X-OpenRouter-Title": settings.openrouter_title}
        url = settings.openrouter_url.rstrip("/") + "/"
        places = settings.openrouter_concurrency
        self._http = httpx.AsyncClient(
            base_url=url,
            headers=headers | {name: value for name, value in named.items() if value},
            follow_redirects=False,
            # A proxy from the environment cannot read the TLS traffic that goes through it.
            trust_env=url.startswith("https:"),
            timeout=httpx.Timeout(settings.openrouter_timeout, connect=min(CONNECT_S, settings.openrouter_timeout)),
            limits=httpx.Limits(max_connections=places + 1, max_keepalive_connections=places, keepalive_expiry=60),
        )
        # Their logs hold URLs, and at the debug level headers.
        for name in ("httpx", "httpcore"):
            logging.getLogger(name).setLevel(logging.WARNING)

    async def post(self, path: str, body: bytes, deadline: float) -> Answer:
        """Raises Unreachable at `deadline` (time.monotonic()) at the latest."""
        request = self._http.build_request("POST", path, content=body, headers={"Content-Type": "application/json"})
        return await self._send(request, MAX_ANSWER_BYTES, deadline)

    async def get(self, path: str, deadline: float) -> Answer:
        """Raises Unreachable."""
        return await self._send(self._http.build_request("GET", quote(path)), MAX_DOCUMENT_BYTES, deadline)

    async def close(self) -> None:
        await self._http.aclose()

    async def _send(self, request: httpx.Request, max_bytes: int, deadline: float) -> Answer:
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                response = await self._http.send(request, stream=True)
                try:
                    body = await _read(response, max_bytes)
                finally:
                    await response.aclose()
        except (httpx.HTTPError, OSError) as error:  # TimeoutError is an OSError
            raise Unreachable(type(error).__name__) from None
        return Answer(
            status=response.status_code,
            content_type=response.headers.get("content-type", ""),
            retry_after=retry_after(response.headers),
            body=body,
        )


async def _read(response: httpx.Response, max_bytes: int) -> bytes:
    if response.headers.get("content-encoding", "identity") != "identity":
        raise Unreachable("a compressed answer")
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > max_bytes:
            raise Unreachable("too long an answer")
    return bytes(body)
