"""Rows of a file on the command line: `messages`, or `text`, `images` and `response` to make messages from."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from server.domain.errors import OperatorError


def read_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and content of every line that is not blank. Raises OperatorError."""
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise OperatorError(f"{file}: line {number} is not a JSON object.")
                    yield number, row
    except OSError as error:
        raise OperatorError(f"{file}: cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise OperatorError(f"{file}: is not JSON Lines (one JSON object per line, in UTF-8).") from error


def messages_of(row: dict[str, Any], folder: Path) -> list[Any]:
    """A row's `messages`, or those made from its `text`, `images` (files or data: URLs) and `response`.

    Raises OperatorError.
    """
    try:
        return _messages_of(row, folder)
    except (AttributeError, TypeError):
        raise OperatorError("A field of the row has the wrong type.") from None


def _messages_of(row: dict[str, Any], folder: Path) -> list[Any]:
    if "messages" in row:
        return list(row["messages"]) if isinstance(row["messages"], list) else [row["messages"]]
    if "text" not in row and "images" not in row:
        raise OperatorError("A row needs `messages`, `text` or `images`.")
    images = [{"type": "image_url", "image_url": {"url": _data_url(image, folder)}} for image in row.get("images", ())]
    messages = [{"role": "user", "content": [*images, {"type": "text", "text": row.get("text", "")}]}]
    if "response" in row:
        messages.append({"role": "assistant", "content": row["response"]})
    return messages


def _data_url(image: str, folder: Path) -> str:
    if image.startswith(("data:", "http:", "https:")):
        return image
    try:
        content = (folder / image).read_bytes()
    except OSError as error:
        raise OperatorError(f"{image}: cannot be read: {error.strerror}.") from error
    return f"data:;base64,{base64.b64encode(content).decode()}"
