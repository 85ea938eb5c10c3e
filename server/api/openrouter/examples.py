"""Worked examples of OpenRouter's dialect for /docs."""

from typing import Any

from server.api.examples import CHAT_EXAMPLES, CHAT_RESPONSES, SLUG
from server.api.openrouter.naming import PROVIDER

Responses = dict[int | str, dict[str, Any]]


def _json_example(description: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"example": value}}}


def _error(description: str, status: int, message: str, kind: str, **metadata: str) -> dict[str, Any]:
    error = {"code": status, "message": message, "metadata": {"error_type": kind, **metadata}}
    return _json_example(description, {"error": error})


NOT_FOUND: Responses = {404: _error("Not here", 404, "The model does not exist here.", "not_found")}
BAD_QUERY: Responses = {
    400: _error("The query is wrong", 400, "The request's path or query is not valid.", "invalid_request")
}

ERROR_RESPONSES: Responses = {
    400: _error("The request is wrong", 400, "There is no message to judge.", "invalid_request", param="messages"),
    **NOT_FOUND,
    413: _error("The body is too large", 413, "The request body is too large.", "payload_too_large"),
    429: _error("The queue is full; see Retry-After", 429, "The server is at its limit.", "rate_limit_exceeded"),
    500: _error("The answer was no verdict", 500, "The answer is no verdict.", "server", code="unparseable_verdict"),
    503: _error("The engine cannot answer", 503, "The engine is not running.", "provider_unavailable"),
    504: _error("No verdict in time", 504, "No verdict within 60 seconds.", "timeout"),
}

REQUEST_EXAMPLES: dict[str, Any] = {
    **CHAT_EXAMPLES,
    "private": (
        "Kept on this machine, with a choice of models",
        {
            "models": [SLUG],
            "provider": {"zdr": True},
            "messages": [{"role": "user", "content": "How do I bake bread?"}],
        },
    ),
}

_HEAD = {"id": "gen-1790000000-8c1d", "model": SLUG, "provider": PROVIDER}
_OPENAI: dict[str, Any] = CHAT_RESPONSES[200]["content"]["application/json"]["example"]

CHAT: Responses = {
    200: _json_example(
        "The verdict as the assistant's reply",
        {
            **_OPENAI,
            **_HEAD,
            "service_tier": None,
            "choices": [{**choice, "native_finish_reason": "stop"} for choice in _OPENAI["choices"]],
            "usage": {
                **_OPENAI["usage"],
                "cost": 0.0,
                "is_byok": False,
                "cost_details": {
                    "upstream_inference_cost": None,
                    "upstream_inference_prompt_cost": 0.0,
                    "upstream_inference_completions_cost": 0.0,
                },
            },
        },
    ),
    **ERROR_RESPONSES,
}
CHAT[200]["content"]["text/event-stream"] = {
    "example": 'data: {"id":"gen-1790000000-8c1d","object":"chat.completion.chunk","created":1790000000,'
    f'"model":"{SLUG}","provider":"{PROVIDER}","system_fingerprint":"fp_0a1b2c3d4e",'
    '"choices":[{"index":0,"delta":{"role":"assistant","content":"unsafe\\nS9"},"logprobs":null,'
    '"finish_reason":null,"native_finish_reason":null}]}\n\ndata: [DONE]\n\n'
}
