"""A body has exactly one reading, or it is refused.

Parsers disagree about duplicate keys, NaN, encodings and lone surrogates. If a gateway and this server read two
different requests from one body, a caller could get past the guard.
"""

import asyncio
import json
import math
import re
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from server.api.http.encoding import BYTE_ORDER_MARK, check_charset, encoding_of, unpacked
from server.api.http.state import served, state_of
from server.domain.errors import InvalidRequest, RequestTimeout, RequestTooLarge

Model = TypeVar("Model", bound=BaseModel)

MAX_VALUES = 50_000
MAX_KEYS = 1000
"""Limits on the values in one body and the keys in one object. Millions of tiny ones would block the event loop for
seconds."""

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_STRING = re.compile(r'"(?>[^"\\]+|\\.)*+"?', re.DOTALL)
"""A JSON string. It also matches a string that never ends, since the search would be quadratic otherwise."""

_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


async def read_body(request: Request, model: type[Model]) -> Model:
    """The request's JSON body as `model`. Raises RequestTooLarge or InvalidRequest, without any value of the body."""
    return validate(parse(await _content(request)), model)


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
    content: bytes | bytearray = await _read(request)
    if encoding is not None:
        # In a thread: 64 MB take longer to unpack than the event loop may be away.
        content = await asyncio.to_thread(unpacked, content, served(request).settings.max_body_bytes)
        _count(request, len(content))
    return content.removeprefix(BYTE_ORDER_MARK)


def _count(request: Request, size: int) -> None:
    """Count `size` more bytes of the request's body. The middleware gives them back. Raises Overloaded."""
    state = state_of(request)
    state.body_counted += served(request).body_budget.take(state.holder, state.body_bytes, size, state.connection)
    state.body_bytes += size


async def _read(request: Request) -> bytes:
    settings = served(request).settings
    try:
        async with asyncio.timeout(settings.deadline):
            return await _read_within(request, settings.max_body_bytes)
    except TimeoutError:
        message = f"The request body did not arrive within {settings.deadline:g} seconds. Send it again."
        raise RequestTimeout(message) from None


async def _read_within(request: Request, limit: int) -> bytes:
    for name, value in request.scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise _too_large(limit)
    chunks: list[bytes] = []
    received, more = 0, True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        received += len(chunk)
        if received > limit:
            raise _too_large(limit)
        _count(request, len(chunk))
        chunks.append(chunk)
        more = message.get("more_body", False)
    return b"".join(chunks)


def _too_large(limit: int) -> RequestTooLarge:
    return RequestTooLarge(
        f"The request body is larger than {limit} bytes. Send a smaller one. The operator sets the limit with"
        " GUARD_MAX_BODY_BYTES."
    )


def parse(body: bytes | bytearray) -> dict[str, Any]:
    """The one reading of a JSON object. Raises InvalidRequest if there is none, or more than one."""
    try:
        text = body.decode("utf-8")
        if text.count(",") >= MAX_VALUES and _STRING.sub("", text).count(",") >= MAX_VALUES:
            raise _Ambiguous(f"it holds more than {MAX_VALUES} values")
        document = _JSON.decode(text)
        if _SURROGATE_ESCAPE.search(text):
            json.dumps(document, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        # UnicodeError and JSONDecodeError are ValueErrors too, and their messages may hold content. Ours do not.
        detail = str(error) if isinstance(error, _Ambiguous) else "it is not valid JSON in UTF-8"
        raise InvalidRequest(f"The request body cannot be read: {detail}.") from None
    if not isinstance(document, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    return document


class _Ambiguous(ValueError):
    """JSON that parsers read differently, or cannot read. The message is for the caller."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise _Ambiguous(f"an object holds more than {MAX_KEYS} keys")
    document = dict(pairs)
    if len(document) != len(pairs):
        raise _Ambiguous("an object holds the same key twice")
    return document


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise _Ambiguous("a number is too large")
    return value


def _refuse_constant(_: str) -> None:
    raise _Ambiguous("it contains NaN or Infinity, which are not valid JSON")


_JSON = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_refuse_constant)


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
