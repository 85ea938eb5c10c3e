"""A dialect is a folder of its own: what it tells the application is all that anybody else must know of it."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any, get_args

import httpx
import pytest
import pytest_asyncio
from fastapi import APIRouter, FastAPI, Request
from pydantic import BaseModel

from server import app as wiring
from server.api.endpoint import Endpoint
from server.api.http.description import json_body, reply
from server.api.http.dialect import Dialect
from server.api.http.direct import DirectRoute, JSONReply
from server.api.http.errors import ErrorShape
from server.api.http.shapes import Closed
from server.api.http.state import served
from server.api.openai.batches import BatchEndpoint
from server.api.service import Reply, Service
from server.batches.endpoints import ENDPOINTS
from server.checkpoints.profile import load_profile
from server.domain.caller import Handling, Scope
from server.domain.conversation import Conversation, TextPart
from server.settings import Settings
from server.store.keys import create
from tests.api.conftest import PROFILE
from tests.fakes import FakeBackend

PEPPER = "pepper for tests " * 2


class Question(BaseModel):
    is_it_safe: str


class Word(Closed):
    word: str


class Oops(Closed):
    oops: str


class Asked:
    """How often somebody asked, kept for as long as the application lives."""

    def __init__(self) -> None:
        self.times = 0


async def answer(service: Service, body: Question, handling: Handling) -> Reply[Word]:
    conversation = Conversation.from_user(TextPart(body.is_it_safe, "is_it_safe"))
    verdicts = await service.judge([conversation], model=None, policy=None, handling=handling)
    return Reply({"word": "no" if verdicts[0].unsafe else "yes"}, verdicts)


ENDPOINT = Endpoint("/toy/ask", Question, answer)

router = APIRouter(prefix="/toy", route_class=DirectRoute)


@router.post(
    "/ask",
    openapi_extra=json_body(Question, {"bread": ("About bread", {"is_it_safe": "bread"})}),
    responses={200: reply(Word, "One word", {"word": "yes"})},
)
async def ask(request: Request) -> JSONReply:
    served(request).kept(Asked).times += 1
    return await ENDPOINT.reply(request)


TOY = Dialect(
    [router],
    scopes={"/toy/ask": Scope.MODERATE},
    errors={"/toy": ErrorShape(lambda error: {"oops": error.message}, Oops)},
)


@pytest_asyncio.fixture
async def app(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, backend: FakeBackend
) -> AsyncIterator[FastAPI]:
    """The application with one more dialect, which the test may name. Keys are needed."""
    monkeypatch.setattr(wiring, "DIALECTS", (*wiring.DIALECTS, getattr(request, "param", TOY)))
    settings = Settings(profile=PROFILE, auth="required", key_pepper=PEPPER)
    app = wiring.create_app(settings, load_profile(PROFILE), backend)
    async with app.router.lifespan_context(app):
        yield app


async def status_with(app: FastAPI, client: httpx.AsyncClient, *scopes: Scope) -> int:
    """What a key with these scopes is answered."""
    key, _ = await create(app.state.served.database, PEPPER.encode(), name="test", scopes=scopes)
    headers = {"authorization": f"Bearer {key}"}
    return (await client.post("/toy/ask", json={"is_it_safe": "bread"}, headers=headers)).status_code


async def test_a_new_dialect_is_served_and_keeps_what_it_needs(app: FastAPI, client: httpx.AsyncClient) -> None:
    assert await status_with(app, client, Scope.MODERATE) == 200
    assert await status_with(app, client, Scope.BATCH) == 403
    assert app.state.served.kept(Asked).times == 1


@pytest.mark.parametrize("app", [Dialect([router])], indirect=True)
async def test_a_dialect_without_scopes_is_closed_to_all_but_admins(app: FastAPI, client: httpx.AsyncClient) -> None:
    assert await status_with(app, client, Scope.MODERATE, Scope.BATCH) == 403
    assert await status_with(app, client, Scope.ADMIN) == 200


async def test_errors_below_its_path_are_worded_by_itself_and_nowhere_else(client: httpx.AsyncClient) -> None:
    for path in ("/toy/ask", "/toy/none", "/toy"):
        assert list((await client.post(path, json={})).json()) == ["oops"]
    for path in ("/toys", "/v1/moderations", "/none"):
        assert list((await client.post(path, json={})).json()["error"]) == ["message", "type", "param", "code"]


async def test_it_is_described_by_its_own_types(app: FastAPI) -> None:
    operation = app.openapi()["paths"]["/toy/ask"]["post"]
    assert references_of(operation["requestBody"]) == {"Question"}
    assert references_of(operation["responses"]["200"]) == {"Word"}
    assert references_of(operation["responses"]["default"]) == {"Oops"}
    assert app.openapi()["components"]["schemas"]["Word"]["additionalProperties"] is False


def references_of(described: Any) -> set[str]:
    return set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(described)))


def test_two_dialects_cannot_claim_one_path(monkeypatch: pytest.MonkeyPatch, backend: FakeBackend) -> None:
    monkeypatch.setattr(wiring, "DIALECTS", (*wiring.DIALECTS, TOY, TOY))
    with pytest.raises(AssertionError, match="claim one path"):
        wiring.create_app(Settings(profile=PROFILE), load_profile(PROFILE), backend)


def test_lines_of_batches_may_go_where_the_document_says() -> None:
    assert set(ENDPOINTS) == set(get_args(BatchEndpoint))
    assert [endpoint.path for endpoint in ENDPOINTS.values()] == list(ENDPOINTS)
