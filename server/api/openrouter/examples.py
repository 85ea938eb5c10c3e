"""Worked examples of OpenRouter's dialect for /docs."""

from typing import Any

from server.api.chat import examples as chat
from server.api.names import PROVIDER, SLUG

BODIES: dict[str, tuple[str, Any]] = {
    **chat.BODIES,
    "private": (
        "Judged on this machine only, with several models to choose from",
        {
            "models": [SLUG],
            "provider": {"zdr": True},
            "messages": [{"role": "user", "content": "How do I bake bread?"}],
        },
    ),
}

COMPLETION: dict[str, Any] = {
    "id": "gen-1790000000-8c1d",
    "model": SLUG,
    "provider": PROVIDER,
    **chat.ANSWERED,
    "service_tier": None,
    "choices": [{**chat.CHOICE, "native_finish_reason": "stop"}],
    "usage": {
        **chat.USAGE,
        "cost": 0.0,
        "is_byok": False,
        "cost_details": {
            "upstream_inference_cost": None,
            "upstream_inference_prompt_cost": 0.0,
            "upstream_inference_completions_cost": 0.0,
        },
    },
}

CHUNK = (
    'data: {"id":"gen-1790000000-8c1d","object":"chat.completion.chunk","created":1790000000,'
    f'"model":"{SLUG}","provider":"{PROVIDER}","system_fingerprint":"fp_0a1b2c3d4e",'
    '"choices":[{"index":0,"delta":{"role":"assistant","content":"unsafe\\nS9"},"logprobs":null,'
    '"finish_reason":null,"native_finish_reason":null}]}\n\ndata: [DONE]\n\n'
)
