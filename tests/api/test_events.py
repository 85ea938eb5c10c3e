"""What the whole server publishes about a request."""

import httpx
import pytest

from server.domain import events
from server.domain.events import Answered, ErrorAnswered, FinishedPromptJudged, Judged
from tests.api.conftest import As
from tests.fakes import FakeBackend, failing

CANARY = "zebra"


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch, client: httpx.AsyncClient) -> list[object]:
    """All that is published after the start, to nobody else than this."""
    heard: list[object] = []
    kinds = (Answered, ErrorAnswered, FinishedPromptJudged, Judged)
    monkeypatch.setattr(events, "_listeners", dict.fromkeys(kinds, (heard.append,)))
    return heard


async def test_a_verdict_and_its_request_share_an_id_and_a_caller(
    client: httpx.AsyncClient, heard: list[object], be: As
) -> None:
    be("key_1")
    response = await client.post("/v1/moderations", json={"input": "bread"})
    judged, answered = heard
    assert isinstance(judged, Judged)
    assert isinstance(answered, Answered)
    assert judged.request_id == answered.request_id == response.headers["x-request-id"]
    assert judged.caller == answered.caller == "key_1"
    assert (answered.route, answered.method, answered.status) == ("/v1/moderations", "POST", 200)
    assert 0 < judged.seconds < answered.seconds


async def test_each_request_has_events_of_its_own_where_no_key_is_needed(
    client: httpx.AsyncClient, heard: list[object]
) -> None:
    replies = [await client.post("/v1/moderations", json={"input": "bread"}) for _ in range(2)]
    judged = [event for event in heard if isinstance(event, Judged)]
    assert [event.request_id for event in judged] == [reply.headers["x-request-id"] for reply in replies]
    assert [event.caller for event in judged] == [None, None]


async def test_an_error_is_published_by_its_code_and_nothing_that_was_sent(
    client: httpx.AsyncClient, backend: FakeBackend, heard: list[object]
) -> None:
    backend.script = failing(ValueError(CANARY))
    await client.post("/v1/moderations", json={"input": CANARY})
    await client.post(f"/v1/{CANARY}", json={})
    assert [event for event in heard if isinstance(event, ErrorAnswered)] == [
        ErrorAnswered("internal_error", 500),
        ErrorAnswered("unknown_url", 404),
    ]
    assert [(event.route, event.status) for event in heard if isinstance(event, Answered)] == [
        ("/v1/moderations", 500),
        ("unknown", 404),
    ]
    assert CANARY not in repr(heard)


async def test_a_request_is_answered_whatever_its_listeners_do(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(event: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(events, "_listeners", dict.fromkeys((Answered, ErrorAnswered, Judged), (broken,)))
    assert (await client.post("/v1/moderations", json={"input": "bread"})).status_code == 200
    assert (await client.post("/v1/moderations", json={"input": ""})).status_code == 400
