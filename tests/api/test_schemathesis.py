"""schemathesis walks every operation of an OpenAPI document and holds the answers to it: of ours, and of OpenAI's own.

What is sent follows from the documents alone, so it is the same in every run.
"""

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
import requests
import schemathesis
import uvicorn
from hypothesis import HealthCheck, settings
from pydantic import TypeAdapter
from schemathesis import Case, CheckContext, Response
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from schemathesis.config import SchemathesisConfig
from schemathesis.schemas import BaseSchema

from server.api.http.errors import Error
from server.app import create_app
from server.backends.base import Case as Judged
from server.checkpoints.profile import load_profile
from server.domain.verdict import Completion
from server.settings import Settings
from tests.api.conftest import PROFILE, wait_until
from tests.api.shapes import specification
from tests.fakes import FakeBackend, by_word
from tests.readings import FAMILY

EXAMPLES = settings(
    max_examples=12, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
CONFIG = SchemathesisConfig.from_dict({"generation": {"deterministic": True, "mode": "all"}})


def with_categories(case: Judged) -> Completion:
    """Also when a threshold below the model's own makes a safe answer unsafe."""
    found = by_word(case)
    return replace(found, reading=replace(found.reading, listed=FAMILY.read("unsafe")))


APP = create_app(Settings(profile=PROFILE), load_profile(PROFILE), FakeBackend(with_categories))
OURS = schemathesis.openapi.from_dict(APP.openapi(), config=CONFIG)


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """A client of the application on the fake backend, behind a socket."""
    server = uvicorn.Server(uvicorn.Config(APP, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        yield client
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """One for all cases: schemathesis would open a connection, and read the environment, for each of thousands."""
    with requests.Session() as session:
        session.trust_env = False
        yield session


@pytest.fixture
def statuses() -> Iterator[Counter[int]]:
    """How often one operation, over all of its examples, answered with what. An error alone describes no answer."""
    counted: Counter[int] = Counter()
    yield counted
    assert any(200 <= status < 300 for status in counted), counted


@OURS.parametrize()
@EXAMPLES
def test_our_own_document_is_true(
    case: Case[Any], client: httpx.Client, session: requests.Session, statuses: Counter[int]
) -> None:
    response = named(case, client).call_and_validate(
        base_url=str(client.base_url),
        session=session,
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_headers_conformance,
            response_schema_conformance,
            unsupported_method,
        ],
    )
    statuses[response.status_code] += 1


KNOWN = {"model": "llama-guard", "name": "llama-guard", "author": "meta-llama", "slug": "llama-guard-4-12b"}


def named(case: Case[Any], client: httpx.Client) -> Case[Any]:
    """The case with names that are known here, or most would end at those that are not.

    What is to be refused for its path keeps the path.
    """
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = KNOWN["model"]
    if case.meta is not None and case.meta.generation.mode.is_negative:
        return case
    if isinstance(case.body, dict) and isinstance(case.body.get("input_file_id"), str):
        case.body["input_file_id"] = a_file(client)
    makers = {"file_id": a_file, "batch_id": a_batch}
    for parameter in case.path_parameters or {}:
        case.path_parameters[parameter] = KNOWN[parameter] if parameter in KNOWN else makers[parameter](client)
    if case.path == "/api/v1/generation" and "id" in (case.query or {}):
        case.query["id"] = a_generation(client)
    return case


LINE = {"custom_id": "1", "method": "POST", "url": "/v1/moderations", "body": {"input": "a bomb"}}
MESSAGES = [{"role": "user", "content": "a bomb"}]


def a_file(client: httpx.Client) -> str:
    return made(
        client, "/v1/files", files={"file": ("rows.jsonl", json.dumps(LINE).encode())}, data={"purpose": "batch"}
    )


def a_batch(client: httpx.Client) -> str:
    wish = {"input_file_id": a_file(client), "endpoint": "/v1/moderations", "completion_window": "24h"}
    return made(client, "/v1/batches", json=wish)


def a_generation(client: httpx.Client) -> str:
    return made(client, "/api/v1/chat/completions", json={"messages": MESSAGES})


def made(client: httpx.Client, path: str, **request: Any) -> str:
    response = client.post(path, **request)
    response.raise_for_status()
    id_: str = response.json()["id"]
    return id_


def errors_are_openais(context: CheckContext, response: Response, case: Case[Any]) -> None:
    """OpenAI's document describes no errors, so these are held to ours."""
    if response.status_code >= 400:
        TypeAdapter(Error).validate_python(response.json())


THEIR_DOCUMENT = specification()

if THEIR_DOCUMENT is None:  # schemathesis takes no document without operations

    @pytest.mark.skip("OpenAI's specification is not at hand")
    def test_openais_document_is_kept() -> None: ...

else:

    def theirs(document: dict[str, Any]) -> BaseSchema:
        """OpenAI's document, cut down to the operations that are served here."""
        served = {re.sub(r"\{\w+\}", "{}", path) for path in APP.openapi()["paths"]}
        paths = {
            path: item for path, item in document["paths"].items() if re.sub(r"\{\w+\}", "{}", f"/v1{path}") in served
        }
        return schemathesis.openapi.from_dict({**document, "paths": paths}, config=CONFIG)

    @theirs(THEIR_DOCUMENT).parametrize()
    @EXAMPLES
    def test_openais_document_is_kept(case: Case[Any], client: httpx.Client, session: requests.Session) -> None:
        named(case, client).call_and_validate(
            base_url=f"{client.base_url}/v1",
            session=session,
            checks=[not_a_server_error, response_schema_conformance, errors_are_openais],
        )
