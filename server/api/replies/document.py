"""Which route answers with what, and the words of that in the OpenAPI document.

tests/api/test_schemathesis.py holds what is served to these.
"""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.api.http.errors import OPENROUTER_PREFIX
from server.api.replies import batches, litellm, openai, openrouter, operations

_REFERENCE = "#/components/schemas/{model}"

REPLIES: dict[tuple[str, str], type[BaseModel]] = {
    ("POST", "/v1/moderations"): openai.Moderation,
    ("POST", "/v1/chat/completions"): openai.ChatCompletion,
    ("POST", "/v1/responses"): openai.Response,
    ("GET", "/v1/models"): openai.ModelList,
    ("GET", "/v1/models/{name}"): openai.Model,
    ("POST", "/v1/files"): batches.File,
    ("GET", "/v1/files"): batches.FileList,
    ("GET", "/v1/files/{file_id}"): batches.File,
    ("DELETE", "/v1/files/{file_id}"): batches.FileDeleted,
    ("POST", "/v1/batches"): batches.Batch,
    ("GET", "/v1/batches"): batches.BatchList,
    ("GET", "/v1/batches/{batch_id}"): batches.Batch,
    ("POST", "/v1/batches/{batch_id}/cancel"): batches.Batch,
    ("POST", "/api/v1/chat/completions"): openrouter.OpenRouterCompletion,
    ("GET", "/api/v1/generation"): openrouter.GenerationData,
    ("GET", "/api/v1/models"): openrouter.OpenRouterModelList,
    ("GET", "/api/v1/models/user"): openrouter.OpenRouterModelList,
    ("GET", "/api/v1/models/count"): openrouter.ModelCountData,
    ("GET", "/api/v1/model/{author}/{slug}"): openrouter.OpenRouterModelData,
    ("GET", "/api/v1/models/{author}/{slug}/endpoints"): openrouter.ModelEndpointsData,
    ("GET", "/api/v1/endpoints/zdr"): openrouter.EndpointList,
    ("GET", "/api/v1/providers"): openrouter.ProviderList,
    ("GET", "/api/v1/key"): openrouter.KeyData,
    ("GET", "/api/v1/credits"): openrouter.CreditsData,
    ("POST", "/beta/litellm_basic_guardrail_api"): litellm.Guardrail,
    ("GET", "/health"): operations.Health,
    ("GET", "/ready"): operations.Ready,
}
"""What each route that answers in JSON answers with when all is well."""

STATES = frozenset({"/health", "/ready"})
"""Routes whose 503 is no error but the same answer."""


def schemas() -> dict[str, Any]:
    """All of the answers' schemas, errors included, by name."""
    models: set[type[BaseModel]] = {*REPLIES.values(), openai.Error, openrouter.OpenRouterError}
    _, document = models_json_schema([(model, "validation") for model in models], ref_template=_REFERENCE)
    found: dict[str, Any] = document["$defs"]
    return found


def describe(document: dict[str, Any]) -> None:
    """Say in `document` what every answer looks like, beside the examples that stand there.

    Errors that no route names are its `default`.
    """
    document.setdefault("components", {}).setdefault("schemas", {}).update(schemas())
    for path, methods in document["paths"].items():
        error = openrouter.OpenRouterError if path.startswith(f"{OPENROUTER_PREFIX}/") else openai.Error
        for method, operation in methods.items():
            reply = REPLIES.get((method.upper(), path))
            responses = operation["responses"]
            if reply is not None:
                _add_schema(responses, "200", "What was asked for", reply)
            if path in STATES and reply is not None:
                _add_schema(responses, "503", "Not so", reply)
            for status in (*responses, "default"):
                if status == "default" or (int(status) >= 400 and not (path in STATES and status == "503")):
                    _add_schema(responses, status, "Any other error", error)


def _add_schema(responses: dict[str, Any], status: str, description: str, model: type[BaseModel]) -> None:
    """The examples are shared between routes, so they are copied and not written to."""
    response = responses.get(status, {"description": description})
    content = response.get("content", {})
    schema = {"schema": {"$ref": _REFERENCE.format(model=model.__name__)}}
    responses[status] = {
        **response,
        "content": {**content, "application/json": {**content.get("application/json", {}), **schema}},
    }
