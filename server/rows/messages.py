"""What is in a row: `messages`, or `text`, `images` and `response` to make messages from."""

import base64
import json
from pathlib import Path
from typing import Any

from server.domain.errors import OperatorError

COLUMNS = ("messages", "text", "images", "response")


def messages_of(row: dict[str, Any], folder: Path) -> list[Any]:
    """A row's `messages`, or those made from its `text`, `images` (files or data: URLs) and `response`.

    They can be written as JSON. Raises OperatorError.
    """
    try:
        messages = _messages_of({name: _decoded(row[name]) for name in COLUMNS if _is_there(row, name)}, folder)
        json.dumps(messages, allow_nan=False)
        return messages
    except (AttributeError, TypeError):
        raise OperatorError("A field of the row has the wrong type.") from None
    except (ValueError, RecursionError):
        raise OperatorError("A field of the row holds what JSON cannot hold, or is nested too deeply.") from None


def _messages_of(row: dict[str, Any], folder: Path) -> list[Any]:
    row = {**row, **{name: _parsed(row[name]) for name in ("messages", "images") if name in row}}
    if "messages" in row:
        return list(row["messages"]) if isinstance(row["messages"], list) else [row["messages"]]
    if "text" not in row and "images" not in row:
        raise OperatorError("A row needs `messages`, `text` or `images`.")
    images = [{"type": "image_url", "image_url": {"url": _data_url(image, folder)}} for image in row.get("images", ())]
    messages = [{"role": "user", "content": [*images, {"type": "text", "text": row.get("text", "")}]}]
    if "response" in row:
        messages.append({"role": "assistant", "content": row["response"]})
    return messages


def _is_there(row: dict[str, Any], name: str) -> bool:
    """CSV has no other way to leave a field out than an empty one. An empty text stays: it must get an error."""
    value = row.get(name)
    return value is not None and (value != "" or name == "text")


def _decoded(value: Any) -> Any:
    """Parquet often holds text as bytes. Raises OperatorError if they are none."""
    if isinstance(value, dict):
        return {name: _decoded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_decoded(each) for each in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise OperatorError("A field of the row holds bytes that are not text in UTF-8.") from None
    return value


def _parsed(value: Any) -> Any:
    """A list or an object that a table holds as text. One file name is a list of one."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            raise OperatorError("`messages` and `images` must hold JSON.") from None
    return [value] if isinstance(value, str) else value


def _data_url(image: str, folder: Path) -> str:
    if image.startswith(("data:", "http:", "https:")):
        return image
    try:
        content = (folder / image).read_bytes()
    except OSError as error:
        raise OperatorError(f"{image}: cannot be read: {error.strerror}.") from error
    except ValueError:
        raise OperatorError("An image has a name that no file can have.") from None
    return f"data:;base64,{base64.b64encode(content).decode()}"
