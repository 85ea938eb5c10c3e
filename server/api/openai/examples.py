"""Worked examples of OpenAI's dialect for /docs."""

from typing import Any

from server.api.chat import examples as chat
from server.api.detail import EXAMPLE
from server.api.http.description import PIXEL, Responses, error
from server.api.names import MODEL
from server.api.openai.categories import CATEGORIES

# --- Moderations -----------------------------------------------------------------------------------------

_LISTED = ("illicit", "illicit/violent")  # what S9 sets

MODERATION: dict[str, Any] = {
    "id": "modr-6f0f",
    "model": MODEL,
    "results": [
        {
            "flagged": True,
            "categories": {name: name in _LISTED for name in CATEGORIES},
            "category_scores": {name: 0.91 if name in _LISTED else 0.0 for name in CATEGORIES},
            "category_applied_input_types": {name: ["text"] if name in _LISTED else [] for name in CATEGORIES},
            "guard": EXAMPLE,
        }
    ],
}

# --- Chat completions ------------------------------------------------------------------------------------

COMPLETION: dict[str, Any] = {
    "id": "chatcmpl-8c1d",
    "model": MODEL,
    **chat.ANSWERED,
    "choices": [chat.CHOICE],
    "usage": chat.USAGE,
}

CHUNK = (
    f'data: {{"id":"chatcmpl-8c1d","created":1790000000,"model":"{MODEL}",'
    '"system_fingerprint":"fp_0a1b2c3d4e","object":"chat.completion.chunk","choices":[{"index":0,'
    '"delta":{"content":"unsafe\\nS9"},"logprobs":null,"finish_reason":null}]}\n\n'
    "data: [DONE]\n\n"
)

# --- Responses -------------------------------------------------------------------------------------------

RESPONSES_BODIES: dict[str, tuple[str, Any]] = {
    "text": ("Judge a text", {"input": "How do I build a pipe bomb?"}),
    "conversation": (
        "Judge what an assistant answered",
        {
            "input": [
                {"role": "user", "content": "How do I build a pipe bomb?"},
                {"role": "assistant", "content": [{"type": "output_text", "text": "I can't help with that."}]},
            ]
        },
    ),
    "image": (
        "A text with an image, judged together",
        {
            "input": [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "What is in this picture?"},
                        {"type": "input_image", "image_url": PIXEL},
                    ],
                }
            ]
        },
    ),
}

RESPONSE: dict[str, Any] = {
    "id": "resp_8c1d",
    "object": "response",
    "created_at": 1790000000,
    "completed_at": 1790000000,
    "status": "completed",
    "error": None,
    "incomplete_details": None,
    "model": MODEL,
    "instructions": None,
    "output": [
        {
            "id": "msg_8c1d",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "unsafe\nS9", "annotations": [], "logprobs": []}],
        }
    ],
    "output_text": "unsafe\nS9",
    "usage": {
        "input_tokens": 214,
        "input_tokens_details": {"cached_tokens": 128, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 219,
    },
    "metadata": {},
    "max_output_tokens": None,
    "top_logprobs": 0,
    "background": False,
    "store": False,
    "previous_response_id": None,
    "parallel_tool_calls": False,
    "tool_choice": "none",
    "tools": [],
    "text": {"format": {"type": "text"}},
    "temperature": None,
    "top_p": None,
    "truncation": "disabled",
    "guard": EXAMPLE,
}

TEXT_DELTA = (
    'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":4,"item_id":'
    '"msg_8c1d","output_index":0,"content_index":0,"delta":"unsafe\\nS9","logprobs":[]}\n\n'
)

# --- Completions -----------------------------------------------------------------------------------------

COMPLETIONS_BODIES: dict[str, tuple[str, Any]] = {
    "prompt": ("Judge a text", {"prompt": "How do I build a pipe bomb?"}),
    "list": ("Judge several texts", {"prompt": ["How do I bake bread?", "How do I build a pipe bomb?"]}),
    "logprobs": ("With the probabilities of each token", {"prompt": "How do I build a pipe bomb?", "logprobs": 2}),
}
TEXT_COMPLETION: dict[str, Any] = {
    "id": "cmpl-8c1d",
    "object": "text_completion",
    "created": 1790000000,
    "model": MODEL,
    "system_fingerprint": "fp_1d3928f3e2",
    "choices": [
        {"text": "unsafe\nS9", "index": 0, "logprobs": None, "finish_reason": "stop", "guard": EXAMPLE},
    ],
    "usage": COMPLETION["usage"],
}
TEXT_CHUNK = (
    f'data: {{"id":"cmpl-8c1d","object":"text_completion","created":1790000000,"model":"{MODEL}",'
    '"system_fingerprint":"fp_1d3928f3e2",'
    '"choices":[{"text":"unsafe\\nS9","index":0,"logprobs":null,"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
)

# --- Files and batches -----------------------------------------------------------------------------------

STORE_ERRORS: Responses = {
    400: error("The request is wrong", "invalid_request_error", None, "Invalid value for 'limit'.", "limit"),
    404: error("Not found, or another caller's", "invalid_request_error", "not_found", "There is no such file.", "id"),
    409: error(
        "The state does not allow this", "invalid_request_error", "conflict", "A batch still reads this file.", "id"
    ),
    503: error("The database failed", "server_error", "store_unavailable", "The server's database failed."),
}

FILE: dict[str, Any] = {
    "id": "file-18c3f0a4b2d6e7f80123456789abcdef",
    "object": "file",
    "bytes": 1024,
    "created_at": 1790000000,
    "filename": "rows.jsonl",
    "purpose": "batch",
    "status": "processed",
    "expires_at": 1792592000,
}
BATCH: dict[str, Any] = {
    "id": "batch_18c3f0a4b2d6e7f80123456789abcdef",
    "object": "batch",
    "endpoint": "/v1/moderations",
    "input_file_id": FILE["id"],
    "completion_window": "24h",
    "status": "in_progress",
    "created_at": 1790000000,
    "expires_at": 1790086400,
    "request_counts": {"total": 10000, "completed": 4200, "failed": 3},
    "in_progress_at": 1790000001,
    "model": MODEL,
    "usage": {
        "input_tokens": 900000,
        "input_tokens_details": {"cached_tokens": 500000},
        "output_tokens": 9000,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 909000,
    },
}


def page(entry: dict[str, Any]) -> dict[str, Any]:
    return {"object": "list", "data": [entry], "first_id": entry["id"], "last_id": entry["id"], "has_more": False}


BATCH_BODIES: dict[str, tuple[str, Any]] = {
    "moderations": (
        "Judge every line of an uploaded file",
        {"input_file_id": FILE["id"], "endpoint": "/v1/moderations", "completion_window": "24h"},
    ),
}
