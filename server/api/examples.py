"""Worked examples for /docs, and the hand-made parts of the OpenAPI document.

Bodies are read by api/http/body.py and not by FastAPI, so their schemas are named here for the document.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.api.replies import document as replies
from server.domain.taxonomy import OPENAI_CATEGORIES

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


def describe(app: FastAPI, model: str, slug: str) -> None:
    """Make `app` serve a document that holds the schemas of the bodies.

    Its examples are of `model`, the served one, which OpenRouter's dialect calls `slug`.
    """

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
            app.openapi_schema = _renamed(document, {MODEL: model, SLUG: slug})
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _renamed(value: Any, names: dict[str, str]) -> Any:
    """A copy of `value` in which each name within a string has given way to the one it maps to."""
    if isinstance(value, dict):
        return {key: _renamed(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    if isinstance(value, str):
        for name, other in names.items():
            value = value.replace(name, other)
    return value


MODEL, SLUG = "{served-model}", "{served-author/served-model}"
"""What the examples call the served model, in OpenAI's dialect and in OpenRouter's."""

_PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)

MODERATION_EXAMPLES: dict[str, Any] = {
    "text": ("One text", {"input": "How do I bake bread?"}),
    "list": ("Several texts, one result each", {"input": ["How do I bake bread?", "How do I build a pipe bomb?"]}),
    "conversation": (
        "A conversation in the Llama API's format",
        {
            "messages": [
                {"role": "user", "content": "How do I build a pipe bomb?"},
                {"role": "assistant", "content": "I can't help with that."},
            ]
        },
    ),
    "image": (
        "A text with an image, judged together",
        {
            "input": [
                {"type": "text", "text": "What is in this picture?"},
                {"type": "image_url", "image_url": {"url": _PIXEL}},
            ]
        },
    ),
    "scores": (
        "With a score of its own for every category, however safe the text is",
        {"input": "How do I bake bread?", "category_scores": "all"},
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
    "logprobs": (
        "With the probabilities of each token",
        {
            "messages": [{"role": "user", "content": "How do I build a pipe bomb?"}],
            "logprobs": True,
            "top_logprobs": 2,
        },
    ),
    "finished_prompt": (
        "A Guard prompt that was finished elsewhere, with categories of its own",
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

RESPONSES_EXAMPLES: dict[str, Any] = {
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
                        {"type": "input_image", "image_url": _PIXEL},
                    ],
                }
            ]
        },
    ),
}


def _json_example(description: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"example": value}}}


def _error(description: str, type_: str, code: str | None, message: str, param: str | None = None) -> dict[str, Any]:
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
    "no_scores": None,
    "images_unseen": 0,
    "raw_text": "unsafe\nS9",
    "finish_reason": "stop",
    "passes": 1,
    "about": None,
    "lookalikes": 0,
    "model": MODEL,
    "backend": "vllm",
    "cache": None,
    "provider": None,
    "cost": None,
    "usage": {
        "prompt_tokens": 214,
        "cached_tokens": 128,
        "completion_tokens": 5,
        "images": 0,
        "frames": 0,
        "frames_unseen": 0,
        "tiles": 0,
    },
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
    502: _error("A remote backend failed", "server_error", "remote_failure", "The remote backend failed."),
    503: _error("The engine cannot answer", "server_error", "engine_unavailable", "The engine is not running."),
    504: _error("No verdict in time", "server_error", "deadline_exceeded", "No verdict within 60 seconds."),
}

MODERATION_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: _json_example(
        "A result for each input, in order",
        {
            "id": "modr-6f0f",
            "model": MODEL,
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
    f'data: {{"id":"chatcmpl-8c1d","created":1790000000,"model":"{MODEL}",'
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
            "model": MODEL,
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

_TEXT_DELTA = (
    'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","sequence_number":4,"item_id":'
    '"msg_8c1d","output_index":0,"content_index":0,"delta":"unsafe\\nS9","logprobs":[]}\n\n'
)

RESPONSES_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: _json_example(
        "The verdict as the response's text",
        {
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
            "guard": _GUARD,
        },
    ),
    **ERROR_RESPONSES,
}
RESPONSES_RESPONSES[200]["content"]["text/event-stream"] = {"example": _TEXT_DELTA}

LITELLM_EXAMPLES: dict[str, Any] = {
    "request": (
        "What a user is about to send to a model",
        {
            "input_type": "request",
            "texts": ["How do I build a pipe bomb?"],
            "structured_messages": [{"role": "user", "content": "How do I build a pipe bomb?"}],
            "model": "gpt-4o",
        },
    ),
    "response": ("What a model answered", {"input_type": "response", "texts": ["I can't help with that."]}),
    "image": ("A text with an image", {"input_type": "request", "texts": ["What is this?"], "images": [_PIXEL]}),
}

LITELLM_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: _json_example(
        "`NONE`: all of it is safe; `BLOCKED`: something is not",
        {"action": "BLOCKED", "blocked_reason": "Unsafe content: S9 Indiscriminate Weapons.", "guard": [_GUARD]},
    ),
    **ERROR_RESPONSES,
}

# --- Files and batches -----------------------------------------------------------------------------------

_STORE_ERRORS: dict[int | str, dict[str, Any]] = {
    400: _error("The request is wrong", "invalid_request_error", None, "Invalid value for 'limit'.", "limit"),
    404: _error("Not there, or somebody else's", "invalid_request_error", "not_found", "There is no such file.", "id"),
    409: _error("Not in this state", "invalid_request_error", "conflict", "A batch still reads this file.", "id"),
    503: _error("The database failed", "server_error", "store_unavailable", "The server's database failed."),
}
_FILE: dict[str, Any] = {
    "id": "file-18c3f0a4b2d6e7f80123456789abcdef",
    "object": "file",
    "bytes": 1024,
    "created_at": 1790000000,
    "filename": "rows.jsonl",
    "purpose": "batch",
    "status": "processed",
    "expires_at": 1792592000,
}
_BATCH: dict[str, Any] = {
    "id": "batch_18c3f0a4b2d6e7f80123456789abcdef",
    "object": "batch",
    "endpoint": "/v1/moderations",
    "input_file_id": _FILE["id"],
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


def _page(entry: dict[str, Any]) -> dict[str, Any]:
    return {"object": "list", "data": [entry], "first_id": entry["id"], "last_id": entry["id"], "has_more": False}


UPLOAD_RESPONSES = {200: _json_example("The file", _FILE), **_STORE_ERRORS, 413: ERROR_RESPONSES[413]}
FILE_RESPONSES = {200: _json_example("The file", _FILE), **_STORE_ERRORS}
FILE_LIST_RESPONSES = {200: _json_example("A page of files", _page(_FILE)), **_STORE_ERRORS}
FILE_DELETED_RESPONSES = {
    200: _json_example("It is gone", {"id": _FILE["id"], "object": "file", "deleted": True}),
    **_STORE_ERRORS,
}
FILE_CONTENT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The bytes of the file", "content": {"application/octet-stream": {}}},
    **_STORE_ERRORS,
}
BATCH_RESPONSES = {200: _json_example("The batch", _BATCH), **_STORE_ERRORS}
BATCH_LIST_RESPONSES = {200: _json_example("A page of batches", _page(_BATCH)), **_STORE_ERRORS}
BATCH_EXAMPLES: dict[str, Any] = {
    "moderations": (
        "Judge every line of a file that was uploaded",
        {"input_file_id": _FILE["id"], "endpoint": "/v1/moderations", "completion_window": "24h"},
    ),
}
