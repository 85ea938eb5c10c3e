"""Content parts as callers send them."""

import base64
import io
from typing import Any

from PIL import Image


def picture(colour: str = "white", size: int = 8) -> str:
    """A data: URL of a PNG of one colour."""
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(url: str | None = None) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url or picture()}}
