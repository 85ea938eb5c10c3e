"""A scripted OpenRouter: a real HTTP server on this machine that answers, fails, stalls and lies on demand.

Every request that reaches it is held to OpenRouter's own ChatRequest where the specification is at hand, and by hand to
what matters most; so are its own ordinary answers. What breaks a rule is kept in `violations`.
"""

import asyncio
import json
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET
from typing import Any

from server.settings import Settings

KEY = "sk-or-v1-canary"
MODEL = "meta-llama/llama-guard-4-12b"
ROOT = Path(__file__).parents[1]
SPECS = [ROOT / "shared/specs/openrouter.yaml", ROOT.parent / "shared/specs/openrouter.yaml"]
UNSAFE_WORD = "bomb"


@dataclass(frozen=True)
class Call:
    """One request as it came: header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def words(self) -> str:
        """All text of the messages."""
        contents = [message["content"] for message in self.json["messages"]]
        parts = [[{"type": "text", "text": c}] if isinstance(c, str) else c for c in contents]
        return " ".join(part["text"] for content in parts for part in content if part["type"] == "text")


@dataclass
class Line:
    """The connection that a play writes to."""

    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """Close with a TCP reset."""
        self.writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Play = Callable[[Call, Line], Awaitable[None]]
"""Answers a chat request. The connection stays open unless the play closes it."""


# --- Plays -----------------------------------------------------------------------------------------------


def chat(content: Any = None, **changes: Any) -> dict[str, Any]:
    """An ordinary answer. `message`, `choice` and `usage` in `changes` update those parts, the rest the document."""
    usage = {"prompt_tokens": 210, "completion_tokens": 5, "total_tokens": 215, "cost": 0.0000384}
    usage |= {"prompt_tokens_details": {"cached_tokens": 128}} | changes.pop("usage", {})
    message = {"role": "assistant", "content": content, "refusal": None, "reasoning": None} | changes.pop("message", {})
    choice = {"index": 0, "finish_reason": "stop", "native_finish_reason": "stop", "logprobs": None, "message": message}
    document = {
        "id": "gen-1790000000-abcdefghij",
        "provider": "DeepInfra",
        "model": MODEL,
        "object": "chat.completion",
        "created": 1790000000,
        "system_fingerprint": None,
        "choices": [choice | changes.pop("choice", {})],
        "usage": usage,
    }
    return document | changes


def failure(code: Any, message: str = "It failed.", **metadata: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, **({"metadata": metadata} if metadata else {})}}


def http(status: int = 200, body: Any = b"", content_type: str = "application/json", **headers: str) -> bytes:
    """A whole HTTP answer; `body` is bytes or what becomes JSON. Underscores in header names stand for dashes."""
    data: bytes = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {"content-type": content_type, "content-length": str(len(data))}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = f"HTTP/1.1 {status} Status\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return head.encode() + b"\r\n" + data


def answer(*arguments: Any, **keywords: Any) -> Play:
    """Sends `http(...)`."""
    return raw(http(*arguments, **keywords))


def raw(data: bytes, *, end: bool = False) -> Play:
    """Sends these bytes, and hangs up after them if this is the `end`."""

    async def play(call: Call, line: Line) -> None:
        await line.send(data)
        if end:
            line.writer.close()

    return play


def says(content: Any, **changes: Any) -> Play:
    return answer(200, chat(content, **changes))


def events(*chunks: Any, done: bool = True) -> bytes:
    """Server-sent events: comments are strings that begin with a colon, all else is data."""
    lines = [c if isinstance(c, str) else f"data: {json.dumps(c)}" for c in chunks]
    return "".join(f"{line}\n\n" for line in [*lines, *(["data: [DONE]"] if done else [])]).encode()


def chunk(content: str | None = None, finish_reason: str | None = None, **changes: Any) -> dict[str, Any]:
    delta = {"role": "assistant", "content": content} | changes.pop("delta", {})
    head: dict[str, Any] = {"id": "gen-1790000000-abcdefghij", "provider": "DeepInfra", "model": MODEL}
    head |= {"object": "chat.completion.chunk", "created": 1790000000}
    return head | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]} | changes


def streams(*chunks: Any, done: bool = True) -> Play:
    return answer(200, events(*chunks, done=done), "text/event-stream")


async def by_word(call: Call, line: Line) -> None:
    """Unsafe with S1 and S9 when any text holds UNSAFE_WORD."""
    await says("\n\nunsafe\nS1,S9" if UNSAFE_WORD in call.words else "safe")(call, line)


async def reset(call: Call, line: Line) -> None:
    line.reset()


async def hangs_up(call: Call, line: Line) -> None:
    line.writer.close()


async def stalls(call: Call, line: Line) -> None:
    """Sends nothing until the client is gone."""
    await asyncio.Event().wait()


def drips(data: bytes, pause_s: float = 0.02) -> Play:
    """Sends one byte after the other: each comes in time, the whole never does."""

    async def play(call: Call, line: Line) -> None:
        for byte in data:
            await line.send(bytes([byte]))
            await asyncio.sleep(pause_s)

    return play


def cut_off(data: bytes, at: int) -> Play:
    """The first `at` bytes, then a closed connection."""
    return raw(data[:at], end=True)


def in_turn(*plays: Play) -> Play:
    """One play after the other, the last one for ever."""
    left = list(plays)

    async def play(call: Call, line: Line) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(call, line)

    return play


# --- The documents of the free addresses -----------------------------------------------------------------


def endpoint(provider: str = "DeepInfra", tag: str = "deepinfra/bf16", **changes: Any) -> dict[str, Any]:
    return {
        "name": f"{provider} | {MODEL}",
        "model_id": MODEL,
        "model_name": "Meta: Llama Guard 4 12B",
        "context_length": 163840,
        "pricing": {"prompt": "0.00000018", "completion": "0.00000018", "discount": 0},
        "provider_name": provider,
        "tag": tag,
        "quantization": "bf16",
        "max_completion_tokens": None,
        "max_prompt_tokens": None,
        "supported_parameters": ["max_tokens", "temperature"],
        "status": 0,
        "uptime_last_5m": 100,
        "uptime_last_30m": 99.5,
        "uptime_last_1d": 99.8,
        "supports_implicit_caching": False,
        "supports_voice_cloning": False,
        "latency_last_30m": {"p50": 251.0, "p75": 350.0, "p90": 480.0, "p99": 850.0},
        "throughput_last_30m": {"p50": 45.2, "p75": 38.5, "p90": 28.3, "p99": 15.1},
    } | changes


def offer(*endpoints: dict[str, Any], inputs: tuple[str, ...] = ("image", "text")) -> dict[str, Any]:
    architecture: dict[str, Any] = {"tokenizer": "Other", "instruct_type": None, "modality": "text+image->text"}
    architecture |= {"input_modalities": list(inputs), "output_modalities": ["text"]}
    return {
        "data": {
            "id": MODEL,
            "name": "Meta: Llama Guard 4 12B",
            "created": 1745975193,
            "description": "A safety classifier.",
            "architecture": architecture,
            "endpoints": list(endpoints),
        }
    }


# --- The server ------------------------------------------------------------------------------------------


@dataclass
class ScriptedOpenRouter:
    """Plays `script` for chat requests; `documents` are what the free addresses answer with, by path."""

    script: Play = by_word
    documents: dict[str, bytes] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    looks: list[Call] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    connections: int = 0
    port: int = 0

    def __post_init__(self) -> None:
        self.documents |= {
            "/api/v1/key": http(200, {"data": {"label": "sk-or-v1-can...ary", "limit_remaining": 12.5}}),
            f"/api/v1/models/{MODEL}/endpoints": http(200, offer(endpoint(), endpoint("Groq", "groq"))),
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/api/v1"

    def settings(self, **changes: Any) -> Settings:
        """Of a server whose remote backend is this one."""
        defaults = {"backend": "openrouter", "openrouter_url": self.url, "openrouter_api_key": KEY}
        return Settings(profile="llama-guard-4-12b", **(defaults | changes))

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        try:
            while (call := await _read(reader, number)) is not None:
                if call.method == "GET":
                    self.looks.append(call)
                    self._check(call.headers.get("authorization") == f"Bearer {KEY}", "a key")
                    writer.write(self.documents.get(call.path, http(404, failure(404))))
                    await writer.drain()
                    continue
                self.calls.append(call)
                self._check_chat(call)
                play = asyncio.ensure_future(self.script(call, Line(writer)))
                gone = asyncio.ensure_future(_gone(writer))
                await asyncio.wait({play, gone}, return_when=asyncio.FIRST_COMPLETED)
                gone.cancel()
                play.cancel()
                await asyncio.gather(play, gone, return_exceptions=True)
                if writer.is_closing():
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def _check(self, condition: bool, rule: str) -> None:
        if not condition:
            self.violations.append(rule)

    def _check_chat(self, call: Call) -> None:
        body = call.json
        self._check((call.method, call.path) == ("POST", "/api/v1/chat/completions"), "an address")
        self._check(call.headers.get("authorization") == f"Bearer {KEY}", "a key")
        self._check(call.headers.get("content-type") == "application/json", "JSON")
        self._check({message["role"] for message in body["messages"]} <= {"user", "assistant"}, "roles")
        self._check(body["max_tokens"] >= 16 and body["temperature"] == 0, "limits")
        self._check("<BEGIN UNSAFE" not in call.body.decode(), "plain messages")
        self._check({"id": "context-compression", "enabled": False} in body["plugins"], "nothing is cut")
        if (spec := specification()) is not None:
            known = spec["components"]["schemas"]["ChatRequest"]["properties"]
            self._check(set(body) <= set(known), "known fields")
            self.violations += [f"request: {error.message[:200]}" for error in errors_in(body, "ChatRequest")]


async def _read(reader: asyncio.StreamReader, connection: int) -> Call | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.split("\r\n")[:-2]
    method, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Call(method, path, headers, body, connection)


async def _gone(writer: asyncio.StreamWriter) -> None:
    """Returns when the client has hung up."""
    while not writer.is_closing():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


@contextmanager
def scripted_openrouter() -> Iterator[ScriptedOpenRouter]:
    """The running server, in a thread of its own."""
    if specification() is not None:
        _validator("ChatRequest")  # reading it takes seconds, which no call should wait for
    remote = ScriptedOpenRouter()
    started, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def run() -> None:
        server = await asyncio.start_server(remote.handle, "127.0.0.1", 0, limit=2**26)
        remote.port = server.sockets[0].getsockname()[1]
        started.set()
        await stop.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield remote
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()
    assert remote.violations == []


# --- OpenRouter's own specification ----------------------------------------------------------------------


@cache
def specification() -> dict[str, Any] | None:
    if any(find_spec(package) is None for package in ("yaml", "jsonschema")):
        return None
    import yaml

    file = next((file for file in SPECS if file.is_file()), None)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return None if file is None else yaml.load(file.read_text(), Loader=loader)


@cache
def _validator(schema: str) -> Any:
    import jsonschema

    spec = specification()
    assert spec is not None
    return jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{schema}", "components": spec["components"]})


def errors_in(document: Any, schema: str) -> list[Any]:
    """What breaks `schema` of the specification, which must be at hand."""
    return list(_validator(schema).iter_errors(document))
