"""Strict reading of a response: an answer in one piece or as a stream, or an error that the remote reports.

A status of 200 proves nothing: such bodies may hold errors too, and so may the middle of a stream. A response that is
neither a complete answer nor an error is garbage.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

BESIDES = (
    *("annotations", "audio", "function_call", "images", "reasoning", "reasoning_content", "reasoning_details"),
    *("refusal", "tool_calls"),
)
"""Fields of a message that Llama Guard leaves empty. Anything in them is not its verdict."""

WHITESPACE = " \t\r\n"


class Garbage(Exception):
    """Neither an answer nor an error."""


class RemoteError(Exception):
    """The remote reports that it failed. `status` is the HTTP status, or the one in the body."""

    def __init__(self, status: int, kind: str = "") -> None:
        super().__init__(status, kind)
        self.status = status
        self.kind = kind
        self.retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer that is not checked yet.

    `text` is without surrounding white space. `besides` is true if the message holds more than text. `cost` is in US
    dollars, None if the remote does not report it.
    """

    text: str
    finish_reason: str | None
    besides: bool
    model: str
    provider: str | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    cost: float | None


def read_reply(content_type: str, body: bytes) -> Reply:
    """Raises RemoteError and Garbage."""
    match content_type.partition(";")[0].strip().lower():
        case "application/json":
            return _whole(read_json(body))
        case "text/event-stream":
            return _streamed(body)
        case _:
            raise Garbage("neither JSON nor an event stream")


def read_error(status: int, body: bytes) -> RemoteError:
    """The error in a response with a status other than 200."""
    try:
        error = read_json(body).get("error")
    except Garbage:
        error = None
    return RemoteError(status, _kind(error))


def read_json(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`, if there is exactly one reading of it. Raises Garbage."""
    try:
        document = json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise Garbage("not JSON") from None
    if not isinstance(document, dict):
        raise Garbage("not an object")
    return document


# --- In one piece ----------------------------------------------------------------------------------------


def _whole(document: Mapping[str, Any]) -> Reply:
    _raise_error_in(document)
    choice = _only_choice(document)
    message = choice.get("message")
    if not isinstance(message, dict) or message.get("role", "assistant") != "assistant":
        raise Garbage("no message of the assistant")
    content = message.get("content")
    if not isinstance(content, str):
        raise Garbage("no content")
    return _reply(document, content, choice.get("finish_reason"), any(message.get(name) for name in BESIDES))


# --- As a stream -----------------------------------------------------------------------------------------


def _streamed(body: bytes) -> Reply:
    """A stream is complete only if it ends with [DONE] and nothing follows."""
    text, finish_reason, besides, done = "", None, False, False
    last: dict[str, Any] = {}
    for data in _events(body):
        if done:
            raise Garbage("data after the end")
        if data == "[DONE]":
            done = True
            continue
        chunk = read_json(data.encode())
        _raise_error_in(chunk)
        if last and chunk.get("model") != last.get("model"):
            raise Garbage("chunks of several models")
        last.update({key: value for key, value in chunk.items() if value is not None})
        if chunk.get("choices") == []:  # the one with the usage
            continue
        choice = _only_choice(chunk)
        delta = choice.get("delta")
        if not isinstance(delta, dict) or delta.get("role") not in (None, "assistant"):
            raise Garbage("no delta of the assistant")
        piece = delta.get("content")
        if not isinstance(piece, str | None) or (piece and finish_reason is not None):
            raise Garbage("no content")
        text += piece or ""
        besides = besides or any(delta.get(name) for name in BESIDES)
        reason = choice.get("finish_reason") or finish_reason
        if finish_reason not in (None, reason):
            raise Garbage("several reasons to end")
        finish_reason = reason
    if not done or finish_reason is None:
        raise Garbage("a stream that breaks off")
    return _reply(last, text, finish_reason, besides)


def _events(body: bytes) -> Iterator[str]:
    """The data of server-sent events. Comments, which only keep the connection open, are skipped."""
    try:
        lines = re.split("\r\n|\n|\r", body.decode("utf-8"))
    except UnicodeDecodeError:
        raise Garbage("not UTF-8") from None
    data: list[str] = []
    for line in lines:
        if line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
        elif not line and data:
            yield "\n".join(data)
            data.clear()
    if data:
        raise Garbage("an event that breaks off")


# --- Parts of both ---------------------------------------------------------------------------------------


def _only_choice(document: Mapping[str, Any]) -> dict[str, Any]:
    choices = document.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise Garbage("not one choice")
    choice: dict[str, Any] = choices[0]
    if choice.get("index", 0) != 0:
        raise Garbage("not the first choice")
    _raise_error_in(choice)
    if choice.get("finish_reason") == "error":
        raise RemoteError(502)
    return choice


def _reply(document: Mapping[str, Any], content: str, finish_reason: Any, besides: bool) -> Reply:
    usage = document.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    provider, model = document.get("provider"), document.get("model")
    if not isinstance(model, str) or not isinstance(finish_reason, str | None):
        raise Garbage("no model or no reason to end")
    return Reply(
        text=content.strip(WHITESPACE),
        finish_reason=finish_reason,
        besides=besides,
        model=model,
        provider=provider if isinstance(provider, str) and provider else None,
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        cached_tokens=_count(details.get("cached_tokens")) if isinstance(details, dict) else 0,
        cost=_dollars(usage.get("cost")),
    )


def _raise_error_in(document: Mapping[str, Any]) -> None:
    error = document.get("error")
    if error is None:
        return
    code = error.get("code") if isinstance(error, dict) else None
    raise RemoteError(code if type(code) is int and 400 <= code <= 599 else 502, _kind(error))


def _kind(error: Any) -> str:
    """OpenRouter's own name for an error, never its message, which may repeat content."""
    metadata = error.get("metadata") if isinstance(error, dict) else None
    kind = metadata.get("error_type") if isinstance(metadata, dict) else None
    return kind if isinstance(kind, str) else ""


def _count(value: Any) -> int:
    """A count, or 0 if it is wrong: no verdict depends on these numbers."""
    return value if type(value) is int and 0 <= value < 2**31 else 0


def _dollars(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and 0 <= value < 1000 else None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key stands twice")
    return document


def _refuse(constant: str) -> NoReturn:
    raise ValueError("no number")
