"""Whatever is sent, the answer is a verdict or an error in OpenAI's shape: never a defect, never an echo."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from server.app import create_app
from server.checkpoints.profile import load_profile
from server.settings import Settings
from tests.api.conftest import PROFILE
from tests.fakes import FakeBackend

PATHS = ["/v1/moderations", "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/safety/run-shield"]

# Words that mean something somewhere, so that a guess is often nearly right.
KEYS = (
    st.sampled_from(["input", "messages", "model", "stream", "stream_options", "include_usage", "n", "logprobs", "x"])
    | st.sampled_from(["role", "content", "type", "text", "image_url", "url", "detail", "uuid", "refusal", "name"])
    | st.sampled_from(["tool_calls", "function", "arguments", "policy", "categories", "threshold", "S1"])
)
WORDS = st.sampled_from(["user", "assistant", "tool", "text", "image_url", "data:image/png;base64,AAAA", "S1", "", " "])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=5),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(KEYS | st.text(max_size=3), below, max_size=5),
    max_leaves=25,
)
PARTS = st.lists(
    st.fixed_dictionaries({"type": WORDS}, optional={"text": VALUES, "image_url": VALUES, "uuid": VALUES}), max_size=3
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": WORDS}, optional={"content": VALUES | PARTS, "tool_calls": VALUES, "refusal": VALUES, "name": VALUES}
    ),
    max_size=4,
)
OPTIONS = {
    **dict.fromkeys(["policy", "stream", "n", "temperature", "stop", "max_tokens", "provider", "models"], VALUES),
    **dict.fromkeys(["include", "max_output_tokens", "conversation", "logprobs", "top_logprobs"], VALUES),
    **dict.fromkeys(["prompt", "response_format", "tools", "tool_choice", "text", "on_error"], VALUES),
}
BODIES = (
    st.fixed_dictionaries({"input": VALUES | PARTS}, optional=OPTIONS)
    | st.fixed_dictionaries({"messages": VALUES | MESSAGES}, optional=OPTIONS)
    | VALUES
)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    app = create_app(Settings(profile=PROFILE), load_profile(PROFILE), FakeBackend())
    with TestClient(app, base_url="http://localhost") as client:
        yield client


def check(client: TestClient, path: str, content: bytes) -> None:
    response = client.post(path, content=content)
    if response.status_code == 200:
        return
    assert response.status_code in (400, 404), response.text
    (error,) = response.json().values()
    assert list(error) == ["message", "type", "param", "code"]
    assert error["message"].isascii()
    assert error["message"].isprintable()
    assert len(response.content) < 600


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=BODIES)
def test_any_document(client: TestClient, path: str, body: Any) -> None:
    check(client, path, json.dumps(body).encode())


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=BODIES, data=st.data())
def test_any_document_with_a_flaw(client: TestClient, path: str, body: Any, data: st.DataObject) -> None:
    """One byte exchanged or a part cut out."""
    content = bytearray(json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    place = data.draw(st.integers(0, max(0, len(content) - 1)))
    content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=2))
    check(client, path, bytes(content))
