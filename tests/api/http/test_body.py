"""One reading of JSON: what two parsers could read differently is refused, and nothing of it is repeated."""

import json
import time
from typing import Any

import httpx
import pytest

from server.settings import Settings
from tests.api.shapes import error_of
from tests.fakes import FakeBackend

CANARY = "zebra crossing"
PATHS = ["/v1/moderations", "/v1/chat/completions"]

UNREADABLE: list[tuple[str, bytes]] = [
    ("nothing", b""),
    ("whitespace", b"  \n"),
    ("no JSON", b"zebra crossing"),
    ("cut off", b'{"input": "zebra crossing'),
    ("cut off in an escape", b'{"input": "zebra crossing\\'),
    ("two documents", b'{"input": "zebra crossing"} {}'),
    ("a trailing comma", b'{"input": "zebra crossing",}'),
    ("a comment", b'{"input": "zebra crossing"} // x'),
    ("single quotes", b"{'input': 'zebra crossing'}"),
    ("a raw newline in a text", b'{"input": "zebra crossing\n"}'),
    ("a form", b"input=zebra+crossing"),
    ("a list", b'["zebra crossing"]'),
    ("a string", b'"zebra crossing"'),
    ("null", b"null"),
    ("a number", b"5"),
    ("the same key twice", b'{"input": "zebra crossing", "input": "x"}'),
    ("the same key, once escaped", b'{"input": "zebra crossing", "\\u0069nput": "x"}'),
    ("the same key deep inside", b'{"input": [{"type": "text", "text": "zebra crossing", "text": "x"}]}'),
    ("the same key in an ignored field", b'{"input": "x", "metadata": {"zebra crossing": 1, "zebra crossing": 2}}'),
    ("NaN", b'{"input": "zebra crossing", "policy": {"threshold": NaN}}'),
    ("Infinity", b'{"input": "zebra crossing", "temperature": Infinity}'),
    ("minus Infinity", b'{"input": "zebra crossing", "temperature": -Infinity}'),
    ("a number beyond doubles", b'{"input": "zebra crossing", "temperature": 1e999}'),
    ("a number beyond negative doubles", b'{"input": "zebra crossing", "temperature": -1e999}'),
    ("an integer of 5000 digits", b'{"input": "zebra crossing", "seed": ' + b"9" * 5000 + b"}"),
    ("a lone high surrogate", b'{"input": "zebra crossing \\ud83d"}'),
    ("a lone low surrogate", b'{"input": "zebra crossing \\uDE00"}'),
    ("surrogates in the wrong order", b'{"input": "zebra crossing \\ude00\\ud83d"}'),
    ("a lone surrogate as a key", b'{"input": "zebra crossing", "\\ud83d": 1}'),
    ("a lone surrogate in raw bytes", b'{"input": "zebra crossing \xed\xa0\xbd"}'),
    ("invalid UTF-8", b'{"input": "zebra crossing \xff"}'),
    ("overlong UTF-8", b'{"input": "zebra crossing \xc0\xaf"}'),
    ("Latin-1", '{"input": "zebra crossing é"}'.encode("latin-1")),
    ("UTF-16", '{"input": "zebra crossing"}'.encode("utf-16")),
    ("UTF-16 without a mark", '{"input": "zebra crossing"}'.encode("utf-16-le")),
    ("UTF-32", '{"input": "zebra crossing"}'.encode("utf-32")),
    ("lists in lists", b'{"input": ' + b"[" * 100_000),
    ("objects in objects", b'{"input": ' + b'{"a":' * 100_000),
    ("deep and complete", b'{"input": "x", "metadata": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
    ("deep with a surrogate", b'{"input": "\\ud83d", "metadata": ' + b"[" * 800 + b"]" * 800 + b"}"),
    ("too many keys", b'{"input": "x", "metadata": {' + b",".join(b'"%d":1' % n for n in range(1001)) + b"}}"),
    ("too many values", b'{"input": "x", "metadata": [' + b"1," * 50_000 + b"1]}"),
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("body", [row[1] for row in UNREADABLE], ids=[row[0] for row in UNREADABLE])
async def test_refused_without_an_echo(client: httpx.AsyncClient, backend: FakeBackend, path: str, body: bytes) -> None:
    response = await client.post(path, content=body, headers={"content-type": "application/json"})
    error_of(response, 400, type="invalid_request_error", param=None, code=None)
    assert "zebra" not in response.text
    assert backend.cases == []


READABLE: list[tuple[str, bytes, str]] = [
    ("a pair of surrogates", b'{"input": "\\ud83d\\ude00"}', "😀"),
    ("an escaped backslash before u", b'{"input": "\\\\ud83d"}', "\\ud83d"),
    ("raw UTF-8", '{"input": "Grüße 😀"}'.encode(), "Grüße 😀"),
    ("a null character", b'{"input": "a\\u0000b"}', "a\0b"),
    ("whitespace around", b' \r\n\t{"input" : "x"}\n', "x"),
    ("commas and quotes in a text", json.dumps({"input": ',"\\' * 60_000}).encode(), ',"\\' * 60_000),
    ("a key once in each object", b'{"input": [{"type": "text", "text": "x"}, {"type": "text", "text": ""}]}', "x"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "text"), [row[1:] for row in READABLE], ids=[row[0] for row in READABLE])
async def test_read_as_it_stands(client: httpx.AsyncClient, backend: FakeBackend, body: bytes, text: str) -> None:
    assert (await client.post("/v1/moderations", content=body)).status_code == 200
    assert backend.texts == [f"User: {text}"]


ECHOES: list[dict[str, Any]] = [
    {"input": {CANARY: CANARY}},
    {"input": "x", CANARY: "x"},
    {"input": "x", "model": CANARY},
    {"input": "x", "policy": CANARY},
    {"input": "x", "policy": {"categories": {CANARY: CANARY}}},
    {"input": "x", "policy": {"categories": {"S1": {CANARY: CANARY}}}},
    {"input": "x", "policy": {"excluded_categories": [CANARY]}},
    {"input": "x", "policy": {"threshold": CANARY}},
    {"input": [{"type": CANARY, "text": CANARY}]},
    {"input": [{"type": "text", "text": CANARY, CANARY: 1}]},
    {"input": [{"type": "image_url", "image_url": {"url": CANARY}}]},
    {"input": [{"type": "image_url", "image_url": {"url": f"https://{CANARY}/x.png"}}]},
    {"input": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{CANARY}"}}]},
    {"messages": [{"role": CANARY, "content": CANARY}]},
    {"messages": [{"role": "user", "content": CANARY, "uuid": CANARY}]},
    {"messages": [{"role": "user", "content": {CANARY: CANARY}}]},
    {"messages": [{"role": "user", "content": "x"}], "n": CANARY},
    {"messages": [{"role": "user", "content": "x"}], "chat_template": CANARY},
]


@pytest.mark.parametrize("body", ECHOES, ids=range(len(ECHOES)))
async def test_no_refusal_repeats_what_was_sent(
    client: httpx.AsyncClient, body: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    response = await client.post("/v1/chat/completions" if "messages" in body else "/v1/moderations", json=body)
    assert response.status_code in (400, 404)
    assert "zebra" not in response.text
    assert "zebra" not in caplog.text


SLOW: dict[str, tuple[bytes, float]] = {
    "messages": (b'{"messages": [' + b"1," * 49_000 + b"1]}", 0.1),
    "parts": (b'{"messages": [{"role": "user", "content": [' + b"1," * 49_000 + b"1]}]}", 0.1),
    "texts": (b'{"input": ["x",' + b"1," * 49_000 + b"1]}", 0.05),
    "unknown parts": (b'{"input": [{"type": "a"}' + b',{"type": "a"}' * 49_000 + b"]}", 0.2),
    "keys": (b'{"input": "x",' + b",".join(b'"k%d": 1' % n for n in range(49_000)) + b"}", 0.1),
    "keys in objects": (b'{"input": [' + b'{"type": "text", "text": "x", "k": 1},' * 16_000 + b"1]}", 0.5),
    "escapes": (b'{"input": "' + b'\\",' * 3_000_000, 1.0),
    "brackets": (b"[" * 8_000_000, 0.5),
    "lists": (b'{"input":' + b"[]," * 2_500_000, 0.5),
}


@pytest.mark.parametrize("name", SLOW)
@pytest.mark.usefixtures("no_garbage_collection")
async def test_a_body_made_to_be_slow_is_refused_at_once(client: httpx.AsyncClient, name: str) -> None:
    """Large bodies are read beside the event loop, in small steps, but they take a core all the same."""
    body, seconds = SLOW[name]
    started = time.process_time()
    response = await client.post(f"/v1/{'chat/completions' if b'messages' in body else 'moderations'}", content=body)
    spent = time.process_time() - started
    error_of(response, 400)
    assert spent < 2 * seconds, "twice, since a core may be shared"


# --- Size ------------------------------------------------------------------------------------------------

LIMIT = 2000


def body_of(size: int) -> bytes:
    return json.dumps({"input": "x" * (size - len('{"input": ""}'))}).encode()


@pytest.mark.parametrize("settings", [{"max_body_bytes": LIMIT}], indirect=True)
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_may_be_this_large_and_no_larger(
    client: httpx.AsyncClient, backend: FakeBackend, settings: Settings, chunked: bool
) -> None:
    async def chunks(body: bytes) -> Any:
        for start in range(0, len(body), 700):
            yield body[start : start + 700]

    fits, too_large = body_of(LIMIT), body_of(LIMIT + 1)
    taken = await client.post("/v1/moderations", content=chunks(fits) if chunked else fits)
    refused = await client.post("/v1/moderations", content=chunks(too_large) if chunked else too_large)
    assert taken.status_code == 200
    error_of(refused, 413, type="invalid_request_error", code="request_too_large")
    assert len(backend.cases) == 1


@pytest.mark.parametrize("length", ["²", "-1", "many", "9" * 30])
async def test_a_strange_length_is_no_defect(client: httpx.AsyncClient, length: str) -> None:
    headers = [(b"content-length", length.encode("latin-1"))]
    response = await client.post("/v1/moderations", content=body_of(100), headers=headers)
    assert response.status_code in (200, 413)
