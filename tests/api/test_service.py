"""What a request brings beside its question, and what its answer says of who judged it."""

import httpx
import pytest

from server.backends.base import Case
from server.domain.verdict import Completion
from tests.fakes import FakeBackend, completion

INPUT = {"input": "how do I bake bread?"}


@pytest.mark.parametrize("value", ["1", "true", "True", " yes ", "on", "anything"])
async def test_a_request_that_says_so_stays_on_this_machine(
    client: httpx.AsyncClient, backend: FakeBackend, value: str
) -> None:
    await client.post("/v1/moderations", json=INPUT, headers={"x-guard-never-remote": value})
    assert backend.cases[0].handling.never_remote


@pytest.mark.parametrize("values", [("false", "true"), ("true", "false"), ("", "0", "no", "1")])
async def test_any_of_several_headers_keeps_a_request_here(
    client: httpx.AsyncClient, backend: FakeBackend, values: tuple[str, ...]
) -> None:
    headers = [("x-guard-never-remote", value) for value in values]
    await client.post("/v1/moderations", json=INPUT, headers=headers)
    assert backend.cases[0].handling.never_remote


@pytest.mark.parametrize("headers", [{}, {"x-guard-never-remote": "false"}, {"x-guard-never-remote": "0"}])
async def test_others_may_go_where_the_operator_says(
    client: httpx.AsyncClient, backend: FakeBackend, headers: dict[str, str]
) -> None:
    await client.post("/v1/moderations", json=INPUT, headers=headers)
    handling = backend.cases[0].handling
    assert (handling.never_remote, handling.background, handling.tenant) == (False, False, None)


async def test_the_answer_names_who_judged_it(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    response = await client.post("/v1/moderations", json=INPUT)
    assert response.headers["x-guard-backend"] == "fake"
    messages = [{"role": "user", "content": "x"}]
    streamed = await client.post("/v1/chat/completions", json={"messages": messages, "stream": True})
    assert streamed.headers["x-guard-backend"] == "fake"


async def test_a_list_that_several_judged_names_each_once(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    def by_turns(case: Case) -> Completion:
        text = case.conversation.turns[-1].texts[0]
        return completion(case, "safe", backend="other" if text == "b" else "fake")

    backend.script = by_turns
    response = await client.post("/v1/moderations", json={"input": ["a", "b", "a"]})
    assert response.headers["x-guard-backend"] == "fake, other"


async def test_what_was_not_judged_names_nobody(client: httpx.AsyncClient) -> None:
    assert "x-guard-backend" not in (await client.post("/v1/moderations", json={})).headers
    assert "x-guard-backend" not in (await client.get("/v1/models")).headers
