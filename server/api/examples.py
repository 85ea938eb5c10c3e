"""Worked examples for /docs, and the hand-made parts of the OpenAPI document.

Bodies are read by api/body.py and not by FastAPI, so their schemas are named here for the document.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.api import replies
from server.profile import OPENAI_CATEGORIES

_SCHEMAS = "#/components/schemas/{model}"
_described: list[type[BaseModel]] = []


def json_request(model: type[BaseModel], examples: dict[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of a route whose body is `model`. Each example is a summary and a body."""
    _described.append(model)
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": _SCHEMAS.format(model=model.__name__)},
                    "examples": {
                        name: {"summary": summary, "value": body} for name, (summary, body) in examples.items()
                    },
                }
            },
        }
    }


def describe(app: FastAPI) -> None:
    """Make `app` serve a document that holds the schemas of the bodies."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _, schemas = models_json_schema([(model, "validation") for model in _described], ref_template=_SCHEMAS)
            known = document.setdefault("components", {}).setdefault("schemas", {})
            known.update(schemas["$defs"])
            # FastAPI's own 422 never leaves this server.
            for name in ("HTTPValidationError", "ValidationError"):
                known.pop(name, None)
            for path in document["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            for route in app.routes:
                if isinstance(route, APIRoute) and route.include_in_schema:
                    # Once more, as FastAPI drops every null, and in our answers nulls have their place.
                    for method in route.methods:
                        described = document["paths"][route.path_format][method.lower()]["responses"]
                        described.update({str(status): response for status, response in route.responses.items()})
            replies.describe(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


_PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)

MODERATION_EXAMPLES: dict[str, Any] = {
    "text": ("One text", {"input": "How do I bake bread?"}),
    "list": ("Several texts, one result each", {"input": ["How do I bake bread?", "How do I build a pipe bomb?"]}),
    "image": (
        "A text with an image, judged together",
        {
            "input": [
                {"type": "text", "text": "What is in this picture?"},
                {"type": "image_url", "image_url": {"url": _PIXEL}},
            ]
        },
    ),
    "policy": (
        "Own categories and threshold",
        {"input": "The butler did it.", "policy": {"categories": {"S1": "Spoilers."}, "threshold": 0.4}},
    ),
}

CHAT_EXAMPLES: dict[str, Any] = {
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
}


def _json_example(description: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"example": value}}}


def _error(description: str, type_: str, code: str, message: str, param: str | None = None) -> dict[str, Any]:
    return _json_example(description, {"error": {"message": message, "type": type_, "param": param, "code": code}})


_LISTED = ("illicit", "illicit/violent")  # what S9 sets
_CATEGORIES = sorted(OPENAI_CATEGORIES)

_GUARD: dict[str, Any] = {
    "verdict": "unsafe",
    "p_unsafe": 0.98,
    "threshold": 0.5,
    "verdict_mass": 0.999,
    "categories": ["S9"],
    "category_scores": {f"S{number}": 0.91 if number == 9 else 0.0 for number in range(1, 15)},
    "category_score_method": "written_list",
    "raw_text": "unsafe\nS9",
    "finish_reason": "stop",
    "backend": "vllm",
    "usage": {"prompt_tokens": 214, "cached_tokens": 128, "completion_tokens": 5, "images": 0, "frames": 0, "tiles": 0},
    "timing": {"queued": 0.001, "computed": 0.04},
}

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: _error(
        "The request is wrong", "invalid_request_error", "empty_input", "There is no message to judge.", "messages"
    ),
    404: _error("Not the served model", "invalid_request_error", "model_not_found", "The model does not exist here."),
    413: _error(
        "The body is too large", "invalid_request_error", "request_too_large", "The request body is too large."
    ),
    429: _error("The queue is full; see Retry-After", "requests", "rate_limit_exceeded", "The server is at its limit."),
    500: _error("The answer was no verdict", "server_error", "unparseable_verdict", "The answer is no verdict."),
    503: _error("The engine cannot answer", "server_error", "engine_unavailable", "The engine is not running."),
    504: _error("No verdict in time", "server_error", "deadline_exceeded", "No verdict within 60 seconds."),
}

MODERATION_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: _json_example(
        "A result for each input, in order",
        {
            "id": "modr-6f0f",
            "model": "meta-llama/Llama-Guard-4-12B",
            "results": [
                {
                    "flagged": True,
                    "categories": {name: name in _LISTED for name in _CATEGORIES},
                    "category_scores": {name: 0.91 if name in _LISTED else 0.0 for name in _CATEGORIES},
                    "category_applied_input_types": {name: ["text"] if name in _LISTED else [] for name in _CATEGORIES},
                    "guard": _GUARD,
                }
            ],
        },
    ),
    **ERROR_RESPONSES,
}

_CHUNK = (
    'data: {"id":"chatcmpl-8c1d","created":1790000000,"model":"meta-llama/Llama-Guard-4-12B",'
    '"system_fingerprint":"fp_0a1b2c3d4e","object":"chat.completion.chunk","choices":[{"index":0,'
    '"delta":{"content":"unsafe\\nS9"},"logprobs":null,"finish_reason":null}]}\n\n'
)

CHAT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: _json_example(
        "The verdict as the assistant's reply",
        {
            "id": "chatcmpl-8c1d",
            "object": "chat.completion",
            "created": 1790000000,
            "model": "meta-llama/Llama-Guard-4-12B",
            "system_fingerprint": "fp_0a1b2c3d4e",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "unsafe\nS9", "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {
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
            },
            "guard": _GUARD,
        },
    ),
    **ERROR_RESPONSES,
}
CHAT_RESPONSES[200]["content"]["text/event-stream"] = {"example": _CHUNK + "data: [DONE]\n\n"}
