"""A body has exactly one reading, or it is refused.

Parsers disagree about duplicate keys, NaN, encodings and lone surrogates. If a gateway and this server read two
different requests from one body, a caller could get past the guard.
"""

import asyncio
import json
import math
import re
from itertools import accumulate
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from server.api.http import json_reader
from server.api.http.encoding import BYTE_ORDER_MARK, check_charset, encoding_of, unpacked
from server.api.http.json_reader import MAX_DEPTH, MAX_KEYS, MAX_TEXT_BYTES, MAX_VALUES, Rules, TooMuchText, Unreadable
from server.api.http.state import served, state_of
from server.domain.aio import done
from server.domain.errors import ContextLengthExceeded, InvalidRequest, RequestTimeout, RequestTooLarge

Model = TypeVar("Model", bound=BaseModel)

LARGE = 65_536
"""A body of more bytes is read beside the event loop, and so is all that is made of its texts."""

AT_ONCE = 262_144
"""A body of more bytes is read in small steps. Python's parser is faster, and reads so many in some milliseconds."""

MAX_WHOLE = 2**64
"""Whole numbers are below this, and at least minus half of it: other parsers would round them."""

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_STRING = re.compile(r'"(?>[^"\\]+|\\.)*+"?', re.DOTALL)
"""A JSON string. It also matches a string that never ends, since the search would be quadratic otherwise."""

_NO_BRACKETS = re.compile(r"[^\[\]{}]+")
_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")

JUDGED = frozenset({"input", "instructions", "messages", "prompt", "structured_messages", "texts", "tool_calls"})
"""Fields whose texts are judged, in any dialect."""


async def read_body(request: Request, model: type[Model]) -> Model:
    """The request's JSON body as `model`. Raises RequestTooLarge or InvalidRequest, without any value of the body."""
    body = await _content(request)
    return await done(lambda: validate(parse(body), model), large=len(body) > LARGE)


def validate(document: dict[str, Any], model: type[Model]) -> Model:
    """A parsed body as `model`. Raises InvalidRequest, without any value of the body."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise _refusal(error) from None


async def _content(request: Request) -> bytes | bytearray:
    """The body without its compression and its byte order mark."""
    check_charset(request.scope["headers"])
    encoding = encoding_of(request.scope["headers"])
    content = await _read(request)
    if encoding is not None:
        # In a thread: 64 MB take longer to unpack than the event loop may be away.
        content = await asyncio.to_thread(unpacked, content, served(request).settings.max_body_bytes)
        _count(request, len(content))
    return content.removeprefix(BYTE_ORDER_MARK) if content.startswith(BYTE_ORDER_MARK) else content


def _count(request: Request, size: int) -> None:
    """Count `size` more bytes of the request's body. The middleware gives them back. Raises Overloaded."""
    state = state_of(request)
    state.body_counted += served(request).body_budget.take(state.holder, state.body_bytes, size, state.connection)
    state.body_bytes += size


async def _read(request: Request) -> bytes | bytearray:
    settings = served(request).settings
    try:
        async with asyncio.timeout(settings.deadline):
            return await _read_within(request, settings.max_body_bytes)
    except TimeoutError:
        message = f"The request body did not arrive within {settings.deadline:g} seconds. Send it again."
        raise RequestTimeout(message) from None


async def _read_within(request: Request, limit: int) -> bytes | bytearray:
    for name, value in request.scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise _too_large(limit)
    body: bytes | bytearray = b""
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        if len(body) + len(chunk) > limit:
            raise _too_large(limit)
        _count(request, len(chunk))
        more = message.get("more_body", False)
        if not body:
            body = chunk
        elif chunk:
            # Pieces are added to the body as they come: to join 64 MB at the end would hold the event loop.
            body = body if isinstance(body, bytearray) else bytearray(body)
            body += chunk
    return body


def _too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(
        f"The request body is larger than {limit} bytes. Send a smaller one. The operator sets the limit with"
        " GUARD_MAX_BODY_BYTES."
    )


def parse(body: bytes | bytearray) -> dict[str, Any]:
    """The one reading of a JSON object. Raises InvalidRequest if there is none, several, or too much."""
    try:
        document = json_reader.read(body, _RULES) if len(body) > AT_ONCE else _read_at_once(body)
    except TooMuchText as error:
        raise _too_much_text(error.field) from None
    except (ValueError, RecursionError) as error:
        # UnicodeError and JSONDecodeError are ValueErrors too, and their messages may hold content. Ours do not.
        detail = str(error) if isinstance(error, Unreadable) else "it is not valid JSON in UTF-8"
        raise InvalidRequest(f"The request body cannot be read: {detail}.") from None
    if not isinstance(document, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    return document


def _read_at_once(body: bytes | bytearray) -> Any:
    """The document in a body of at most AT_ONCE bytes."""
    text = body.decode("utf-8")
    _check_extent(text)
    document = _JSON.decode(text)
    if _SURROGATE_ESCAPE.search(text):
        json.dumps(document, ensure_ascii=False).encode("utf-8")
    return document


def _check_extent(text: str) -> None:
    """Raises Unreadable if a JSON text holds too many values or too many levels of them."""
    openings = text.count("[") + text.count("{")
    if openings <= MAX_DEPTH and openings + text.count(",") < MAX_VALUES:
        return  # most bodies
    structure = _STRING.sub("", text)
    brackets = _NO_BRACKETS.sub("", structure)
    if structure.count("[") + structure.count("{") + structure.count(",") >= MAX_VALUES:
        raise json_reader.too_many_values()
    if max(accumulate((1 if each in "[{" else -1 for each in brackets), initial=0)) > MAX_DEPTH:
        raise json_reader.too_deep()


def _too_much_text(field: str | None) -> InvalidRequest:
    if field in JUDGED:
        message = f"The texts in '{field}' have more than {MAX_TEXT_BYTES} bytes, which fit into no context. Send less."
        return ContextLengthExceeded(message, param=field)
    return RequestTooLarge(
        f"The texts of the request, without its images, have more than {MAX_TEXT_BYTES} bytes. Send less."
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise json_reader.too_many_keys()
    document = dict(pairs)
    if len(document) != len(pairs):
        raise Unreadable("an object holds the same key twice")
    return document


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise Unreadable("a number is too large")
    return value


def _whole(number: str) -> int:
    value = int(number)
    if not -MAX_WHOLE // 2 <= value < MAX_WHOLE:
        raise Unreadable("a whole number has more than 64 bits")
    return value


def _refuse_constant(_: str) -> None:
    raise Unreadable("it contains NaN or Infinity, which are not valid JSON")


_RULES = Rules(whole=_whole, fraction=_finite, unique=_unique)
_JSON = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_whole, parse_float=_finite, parse_constant=_refuse_constant
)


def _refusal(error: ValidationError) -> InvalidRequest:
    """The first fault, in OpenAI's words: the path of the field and what is wrong, but not its value."""
    first = error.errors(include_url=False, include_input=False)[0]
    path = _path(first["loc"])
    match first["type"]:
        case "missing":
            message = f"Missing required parameter: '{path}'."
        case "extra_forbidden" if path:
            message = f"Unknown parameter: '{path}'."
        case "extra_forbidden":
            message = "Unknown parameter."
        case "union_tag_invalid" | "union_tag_not_found":
            message = f"Invalid type for '{path}'. See /docs for what it accepts."
        case "model_type" | "model_attributes_type" | "dict_type":
            message = f"Invalid value for '{path}': Input should be an object."
        case "value_error":
            message = f"Invalid value for '{path}': {first['ctx']['error']}."
        case _:
            message = f"Invalid value for '{path}': {first['msg']}."
    return InvalidRequest(message, param=path or None)


def _path(location: tuple[int | str, ...]) -> str:
    """`messages[0].content[1].image_url`, without the branches of unions, which are named `<branch>`.

    Callers choose the names of unknown fields, so a name may hold content. The path ends before the first step that
    does not look like a field name.
    """
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif _FIELD_NAME.fullmatch(step):
            path += f".{step}" if path else step
        elif not step.startswith("<"):
            break
    return path
