"""What a request brought is gone when it ends, and waits for no garbage collection, of which serve() has few.

An error holds the frames that it passed through and all that they know; a frame that still knows the error, or a task
or future of which the error is the outcome, closes a circle.
"""

import asyncio
from collections.abc import Awaitable
from typing import Any

import httpx
import pytest

from server.backends.base import Case
from server.domain.errors import EngineFailure
from server.domain.reading import LARGE
from server.domain.verdict import Completion
from tests.api.conftest import LiveServer, wait_until
from tests.api.http.test_connections import hung_up, send
from tests.api.parts import image
from tests.fakes import FakeBackend, Script, by_word, failing, hanging, parts_in_memory, until

pytestmark = pytest.mark.usefixtures("no_garbage_collection")

LONG = "x" * (LARGE + 1)
BROKEN = "data:image/png;base64,iVBORw0KGgo="


def chat(content: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **fields}


FAILING = failing(EngineFailure("no"))
DEFECT = failing(ValueError("no"))


def failing_on_bad(case: Case) -> Completion | Awaitable[Completion]:
    return FAILING(case) if "bad" in str(case.conversation) else by_word(case)


@pytest.mark.parametrize(
    ("path", "body", "script", "status"),
    [
        ("/v1/moderations", {"input": "x"}, by_word, 200),
        ("/v1/chat/completions", chat("x", stream=True), by_word, 200),
        ("/v1/moderations", {"input": [image()]}, by_word, 200),
        ("/v1/moderations", {"input": "x"}, FAILING, 500),
        ("/v1/chat/completions", chat("x"), FAILING, 500),
        ("/v1/responses", {"input": "x"}, FAILING, 500),
        ("/v1/moderations", {"input": "x"}, DEFECT, 500),
        ("/v1/moderations", {"input": "x"}, hanging, 504),
        ("/v1/moderations", {"input": ["x", "bad", "y"]}, failing_on_bad, 500),
        ("/v1/moderations", {"input": ["x", "bad", " ", "y"], "on_error": "per_item"}, failing_on_bad, 200),
        ("/v1/moderations", {"input": ["x", "y"]}, hanging, 504),
        ("/v1/moderations", {"input": [image(BROKEN)]}, by_word, 400),
        ("/v1/chat/completions", chat([image(), image(BROKEN), image(BROKEN)]), by_word, 400),
        ("/v1/moderations", {"input": "x", "model": "gpt-4"}, by_word, 404),
        ("/v1/moderations", {"input": " "}, by_word, 400),
        # Large ones are read in a thread.
        ("/v1/moderations", {"input": LONG}, by_word, 200),
        ("/v1/moderations", {"input": LONG, "n": 7}, by_word, 400),
        ("/v1/chat/completions", chat(LONG, n=0), by_word, 400),
        ("/v1/chat/completions", chat([image(BROKEN), {"type": "text", "text": LONG}]), by_word, 400),
        ("/v1/moderations", {"input": LONG, "model": "gpt-4"}, by_word, 404),
    ],
)
@pytest.mark.parametrize("settings", [{"deadline": 1.0}], indirect=True)
async def test_nothing_of_a_request_is_left(
    client: httpx.AsyncClient, backend: FakeBackend, path: str, body: dict[str, Any], script: Script, status: int
) -> None:
    backend.script = script
    before = parts_in_memory()
    # Three at a time: what is equal is worked on once, and whoever joins is told by an error of their own.
    responses = await asyncio.gather(*(client.post(path, json=body) for _ in range(3)))
    assert [response.status_code for response in responses] == [status] * 3
    backend.cases.clear()
    # Not at once: a task that was cancelled, or a thread that decodes, may be about to end.
    await until(lambda: parts_in_memory() <= before)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/moderations", {"input": "x"}),
        ("/v1/moderations", {"input": ["x", "y", "z"]}),
        ("/v1/chat/completions", chat([image()])),
        ("/v1/chat/completions", chat("x", stream=True)),
    ],
)
def test_nothing_of_a_client_that_hangs_up_is_left(
    live: LiveServer, backend: FakeBackend, path: str, body: dict[str, Any]
) -> None:
    before = parts_in_memory()
    backend.script = hanging
    connections = [send(live, path, body) for _ in range(2)]
    wait_until(lambda: backend.running > 0)
    for connection in connections:
        hung_up(connection, abruptly=False)
    wait_until(lambda: backend.running == 0)
    backend.cases.clear()
    wait_until(lambda: parts_in_memory() <= before)
