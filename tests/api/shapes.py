"""What every answer must look like, in our own words and in OpenAI's own specification where it is at hand."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parents[2]
SPECS = [ROOT / "shared/specs/openai-subset.json", ROOT.parent / "shared/specs/openai-subset.json"]

OPENAI_CATEGORIES = [
    "harassment",
    "harassment/threatening",
    "hate",
    "hate/threatening",
    "illicit",
    "illicit/violent",
    "self-harm",
    "self-harm/instructions",
    "self-harm/intent",
    "sexual",
    "sexual/minors",
    "violence",
    "violence/graphic",
]


def error_of(response: httpx.Response, status: int, **expected: Any) -> dict[str, Any]:
    """The error of a response that has `status` and is exactly in OpenAI's shape; `expected` are some of its values."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert isinstance(error["message"], str)
    assert error["message"].endswith(".")
    assert isinstance(error["type"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    assert {key: error[key] for key in expected} == expected
    assert response.headers["x-should-retry"] in ("true", "false")
    assert response.headers["x-request-id"].startswith("req_")
    assert int(response.headers["openai-processing-ms"]) >= 0
    return error


@cache
def specification() -> dict[str, Any] | None:
    file = next((file for file in SPECS if file.is_file()), None)
    return None if file is None else nullable_as_union(json.loads(file.read_text()))


def nullable_as_union(schema: Any) -> Any:
    """`nullable` is a word of OpenAPI 3.0, which OpenAI's document of version 3.1 still uses in places."""
    if isinstance(schema, list):
        return [nullable_as_union(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: nullable_as_union(value) for key, value in schema.items()}
    if schema.pop("nullable", None) is True and isinstance(schema.get("type"), str):
        schema["type"] = [schema["type"], "null"]
        if "enum" in schema:
            schema["enum"].append(None)
    return schema


def obeys_openai(document: Any, schema: str) -> None:
    """Hold `document` to a schema of OpenAI's own document; skips the test where that is not at hand."""
    spec = specification()
    if spec is None:
        pytest.skip("OpenAI's specification is not at hand")
    jsonschema = pytest.importorskip("jsonschema")
    reference = {"$ref": f"#/components/schemas/{schema}", "components": spec["components"]}
    jsonschema.Draft202012Validator(reference).validate(document)


def events_of(text: str) -> list[Any]:
    """The data of a stream of server-sent events; the last one must be [DONE]."""
    blocks = text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    data = [block.removeprefix("data: ") for block in blocks]
    assert data.pop() == "[DONE]"
    return [json.loads(item) for item in data]
