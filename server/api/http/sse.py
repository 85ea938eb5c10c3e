"""Server-sent events."""

from collections.abc import AsyncIterator, Mapping

import orjson
from fastapi.responses import StreamingResponse

DONE = "data: [DONE]\n\n"


def event(document: Mapping[str, object], kind: str | None = None) -> str:
    """One event. `kind` is its name, in dialects that name their events."""
    data = f"data: {orjson.dumps(document).decode()}\n\n"
    return data if kind is None else f"event: {kind}\n{data}"


def stream(events: AsyncIterator[str]) -> StreamingResponse:
    return StreamingResponse(events, media_type="text/event-stream")
