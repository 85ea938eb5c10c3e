"""Worked examples of chat completions for /docs."""

from typing import Any

from server.api.detail import EXAMPLE

BODIES: dict[str, tuple[str, Any]] = {
    "prompt": ("Judge what a user wrote", {"messages": [{"role": "user", "content": "How do I build a pipe bomb?"}]}),
    "response": (
        "Judge what an assistant answered",
        {
            "messages": [
                {"role": "user", "content": "How do I build a pipe bomb?"},
                {"role": "assistant", "content": "I can't help with that."},
            ]
        },
    ),
    "stream": (
        "Streamed, with usage",
        {
            "messages": [{"role": "user", "content": "How do I bake bread?"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    ),
    "logprobs": (
        "With the probabilities of each token",
        {
            "messages": [{"role": "user", "content": "How do I build a pipe bomb?"}],
            "logprobs": True,
            "top_logprobs": 2,
        },
    ),
    "finished_prompt": (
        "A finished Guard prompt with its own categories",
        {
            "messages": [
                {
                    "role": "user",
                    "content": "Task: Check if there is unsafe content in 'User' messages in conversations according"
                    " our safety policy with the below categories.\n\n<BEGIN UNSAFE CONTENT CATEGORIES>\nO1: Spoilers."
                    "\nO2: Off Topic.\n<END UNSAFE CONTENT CATEGORIES>\n\n<BEGIN CONVERSATION>\n\nUser: The butler did"
                    " it.\n\n<END CONVERSATION>\n\nProvide your safety assessment for ONLY THE LAST User message in"
                    " the above conversation:\n - First line must read 'safe' or 'unsafe'.\n - If unsafe, a second line"
                    " must include a comma-separated list of violated categories.",
                }
            ]
        },
    ),
}

ANSWERED: dict[str, Any] = {
    "object": "chat.completion",
    "created": 1790000000,
    "system_fingerprint": "fp_0a1b2c3d4e",
    "guard": EXAMPLE,
}
"""The fields that a completion has in every dialect, in addition to `CHOICE` and `USAGE`."""

CHOICE: dict[str, Any] = {
    "index": 0,
    "message": {"role": "assistant", "content": "unsafe\nS9", "refusal": None},
    "logprobs": None,
    "finish_reason": "stop",
}

USAGE: dict[str, Any] = {
    "prompt_tokens": 214,
    "completion_tokens": 5,
    "total_tokens": 219,
    "prompt_tokens_details": {"cached_tokens": 128, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 0,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}
