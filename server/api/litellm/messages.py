"""Messages of any provider, as LiteLLM passes them on: every text and picture in them."""

import json
from collections.abc import Iterator
from typing import Any

from server.api.wire import IDENTIFIER, OPAQUE
from server.domain.conversation import ROLES, ImagePart, Message, Part, TextPart
from server.domain.errors import InvalidRequest

TEXT_KEYS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
    "tool_reference": "tool_name",
}
"""Kinds of content parts that hold text, and the key of the text."""

IMAGE_KINDS = frozenset({"image_url", "input_image"})

ENCRYPTED = {"redacted_thinking": "data", "reasoning.encrypted": "data"}
"""Kinds of encrypted objects, and the key of the encrypted text. Neither users nor this model can read it."""

LABELS = frozenset({"role", "name", "type", "status", "detail", "ttl"})
"""A value under these keys is not judged if it is one identifier."""

TOKENS = frozenset({"id", "call_id", "tool_call_id", "signature", "thought_signature", "encrypted_content", "format"})
"""A value under these keys is not judged if it is a token that a program made."""

FIELDS = frozenset(
    {"annotations", "content", "function_call", "images", "name", "provider_specific_fields", "reasoning"}
    | {"reasoning_content", "reasoning_items", "refusal", "thinking_blocks", "tool_call_id", "tool_calls"}
)
"""Fields of a message that a path may name. Any other key may be content, which no reply repeats."""


def read_message(message: dict[str, Any], index: int) -> Message:
    """A message of any provider. Raises InvalidRequest if it cannot be judged."""
    path = f"structured_messages[{index}]"
    role, parts = message.get("role"), list[Part]()
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidRequest(f"Unknown role. Known roles are: {', '.join(ROLES)}.", param=f"{path}.role")
    for key, value in message.items():
        field = f"{path}.{key}" if key in FIELDS else path
        match key, value:
            case "role", _:
                pass
            case "content" | "images", list():
                for position, part in enumerate(value):
                    parts += _part(part, f"{field}[{position}]")
            case "tool_calls", list():
                for position, call in enumerate(value):
                    parts += read_call(call, f"{field}[{position}]")
            case "function_call", dict():
                parts += read_call({"function": value}, field)
            case _:
                parts += _words({key: value}, field)
    return Message(role, tuple(parts))


def _part(part: Any, path: str) -> Iterator[Part]:
    """The text or image of a content part, and then the texts in its other fields."""
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise InvalidRequest("A content part must be an object with a `type`.", param=path)
    if kind in TEXT_KEYS and isinstance(words := part.get(key := TEXT_KEYS[kind], 0), str | None):
        yield TextPart(words or "", f"{path}.{key}")
        yield from _words(_without(part, key), path)
    elif kind in IMAGE_KINDS:
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        if not isinstance(url, str):
            raise InvalidRequest("An image part must have its URL in `image_url`.", param=f"{path}.image_url")
        yield ImagePart(url_of(url), f"{path}.image_url")
        if isinstance(image, dict):
            yield from _words(_without(image, "url"), f"{path}.image_url")
        yield from _words(_without(part, "image_url"), path)
    elif kind in ENCRYPTED:
        yield from _words(part, path)
    else:
        raise InvalidRequest(
            "This server cannot judge content parts of this type. Send the content as text or as images.", param=path
        )


def read_call(call: Any, path: str) -> Iterator[TextPart]:
    """A tool call as chat completions judge it, and the texts in its other fields. All texts of an unknown shape."""
    match call:
        case {"function": {"arguments": str() as arguments} as function} if isinstance(
            name := function.get("name") or "", str
        ):
            yield TextPart(f"{name}({arguments})", path)
            yield from _words(_without(function, "name", "arguments"), path)
            yield from _words(_without(call, "function"), path)
        case _:
            yield TextPart(json.dumps(call, ensure_ascii=False), path)


def _words(value: Any, path: str) -> Iterator[TextPart]:
    """Every text in a value of unknown shape, such as a model's thoughts. `path` is the field that holds it."""
    if isinstance(value, str):
        yield TextPart(value, path)
    elif isinstance(value, list):
        for item in value:
            yield from _words(item, path)
    elif isinstance(value, dict):
        kind = value.get("type")
        hidden = ENCRYPTED.get(kind) if isinstance(kind, str) else None
        for key, item in value.items():
            if IDENTIFIER.fullmatch(key) is None:
                yield TextPart(key, path)
            if not (isinstance(item, str) and _says_nothing(key, item, hidden)):
                yield from _words(item, path)


def _says_nothing(key: str, text: str, hidden: str | None) -> bool:
    """Whether `text` is only an identifier or a token under a key for one. `hidden` is another key for tokens."""
    if key in LABELS:
        return IDENTIFIER.fullmatch(text) is not None
    return (key in TOKENS or key == hidden) and OPAQUE.fullmatch(text) is not None


def _without(value: dict[str, Any], *known: str) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key not in known}


def url_of(image: str) -> str:
    """A URL for `image`, since LiteLLM passes some providers' images on as plain base64."""
    return image if ":" in image[:16] else f"data:;base64,{image}"


def payload(url: str) -> str:
    return url.rpartition(";base64,")[2] if url[:5].lower() == "data:" else url
