"""Worked examples of LiteLLM's dialect for /docs."""

from typing import Any

from server.api.detail import EXAMPLE
from server.api.http.description import PIXEL

BODIES: dict[str, tuple[str, Any]] = {
    "request": (
        "A request from a user to a model",
        {
            "input_type": "request",
            "texts": ["How do I build a pipe bomb?"],
            "structured_messages": [{"role": "user", "content": "How do I build a pipe bomb?"}],
            "model": "gpt-4o",
        },
    ),
    "response": ("A model's response", {"input_type": "response", "texts": ["I can't help with that."]}),
    "image": ("A text with an image", {"input_type": "request", "texts": ["What is this?"], "images": [PIXEL]}),
}

BLOCKED: dict[str, Any] = {
    "action": "BLOCKED",
    "blocked_reason": "Unsafe content: S9 Indiscriminate Weapons.",
    "guard": [EXAMPLE],
}
