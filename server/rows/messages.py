"""What is in a row: `messages`, or `text`, `images` and `response` to make messages from."""

import base64
import json
from pathlib import Path
from typing import Any

from server.domain.errors import OperatorError


def messages_of(row: dict[str, Any], folder: Path) -> list[Any]:
    """A row's `messages`, or those made from its `text`, `images` (files or data: URLs) and `response`.

    Raises OperatorError.
    """
    try:
        return _messages_of(row, folder)
    except (AttributeError, TypeError):
        raise OperatorError("A field of the row has the wrong type.") from None


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


def _parsed(value: Any) -> Any:
    """A list or an object that a table holds as text. One file name is a list of one."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            raise OperatorError("`messages` and `images` must hold JSON.") from None
    return [value] if isinstance(value, str) else value


def _data_url(image: str, folder: Path) -> str:
    if image.startswith(("data:", "http:", "https:")):
        return image
    try:
        content = (folder / image).read_bytes()
    except OSError as error:
        raise OperatorError(f"{image}: cannot be read: {error.strerror}.") from error
    return f"data:;base64,{base64.b64encode(content).decode()}"
