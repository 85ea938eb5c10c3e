"""What OpenRouter's answers must look like, in our own words and in its own specification where that is at hand."""

from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parents[3]
SPECS = [ROOT / "shared/specs/openrouter.yaml", ROOT.parent / "shared/specs/openrouter.yaml"]

SLUG = "meta-llama/llama-guard-4-12b"


def error_of(response: httpx.Response, status: int, **metadata: Any) -> dict[str, Any]:
    """The error of a response in OpenRouter's shape; `metadata` are some of the values that it tells more by."""
    assert response.status_code == status, response.text
    body = response.json()
    assert list(body) == ["error"]
    error: dict[str, Any] = body["error"]
    assert list(error) == ["code", "message", "metadata"]
    assert type(error["code"]) is int
    assert error["code"] == status
    assert error["message"].endswith(".")
    assert {key: error["metadata"].get(key) for key in metadata} == metadata
    return error


@cache
def specification() -> dict[str, Any] | None:
    file = next((file for file in SPECS if file.is_file()), None)
    if file is None:
        return None
    yaml = pytest.importorskip("yaml")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    spec: dict[str, Any] = yaml.load(file.read_text(), Loader=loader)
    # A list of the providers of one day, to which OpenRouter's own SDK lets others be added.
    spec["components"]["schemas"]["ProviderName"].pop("enum")
    return spec


def obeys_openrouter(document: Any, *, schema: str | None = None, path: str = "", method: str = "get") -> None:
    """Hold `document` to a named schema, or to what a path answers with; skips the test without the specification."""
    spec = specification()
    if spec is None:
        pytest.skip("OpenRouter's specification is not at hand")
    jsonschema = pytest.importorskip("jsonschema")
    if schema is not None:
        wanted: dict[str, Any] = {"$ref": f"#/components/schemas/{schema}"}
    else:
        wanted = spec["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.Draft202012Validator({**wanted, "components": spec["components"]}).validate(document)


def error_types() -> set[str]:
    spec = specification()
    if spec is None:
        pytest.skip("OpenRouter's specification is not at hand")
    return set(spec["components"]["schemas"]["ApiErrorType"]["enum"])
