"""`on_error: "per_item"`: one row that cannot be judged costs one row, and nobody takes it for a safe one."""

from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI

from server.api.openai.categories import CATEGORIES
from server.app import CHARACTERS_PER_TOKEN
from server.checkpoints.profile import load_profile
from server.domain.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineFailure,
    EngineUnavailable,
    GuardError,
    Overloaded,
    ShuttingDown,
    UnparseableVerdict,
)
from server.domain.verdict import Completion
from tests.api.conftest import PROFILE, As, LiveServer
from tests.api.parts import image, text
from tests.api.shapes import error_of, obeys_openai
from tests.fakes import FakeBackend, by_word, failing

URL = "/v1/moderations"
EACH = {"on_error": "per_item"}
TOO_LONG = "x" * (load_profile(PROFILE).context_tokens * CHARACTERS_PER_TOKEN + 1)


def failing_on(word: str, error: GuardError) -> Any:
    fail = failing(error)

    def script(case: Any) -> Completion:
        return fail(case) if word in str(case.conversation) else by_word(case)  # type: ignore[return-value]

    return script


async def judged(client: httpx.AsyncClient, input_: Any, **fields: Any) -> dict[str, Any]:
    response = await client.post(URL, json={"input": input_, **EACH, **fields})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def test_errors_stand_in_their_places(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = failing_on("unclear", UnparseableVerdict("The model's answer is not a verdict."))
    body = await judged(client, ["bread", "", "a bomb", "unclear", "\u200b", "tea"])
    assert [result["flagged"] for result in body["results"]] == [False, True, True, True, True, False]
    errors = [result.get("error") for result in body["results"]]
    assert [error and (error["code"], error["param"]) for error in errors] == [
        None,
        ("empty_input", "input[1]"),
        None,
        ("unparseable_verdict", None),
        ("empty_input", "input[4]"),
        None,
    ]
    assert all(("guard" in result) is ("error" not in result) for result in body["results"])
    assert set(errors[1]) == {"message", "type", "param", "code"}
    obeys_openai(body, "CreateModerationResponse")


async def test_a_failed_row_is_flagged_for_whoever_reads_the_categories_too(client: httpx.AsyncClient) -> None:
    (result,) = (await judged(client, [" "]))["results"]
    assert result["flagged"] is True
    assert {name for name, flag in result["categories"].items() if flag} == {"illicit"}
    assert {name: score for name, score in result["category_scores"].items() if score} == {"illicit": 1.0}
    for fields in ("categories", "category_scores", "category_applied_input_types"):
        assert sorted(result[fields]) == sorted(CATEGORIES)


@pytest.mark.parametrize("settings", [{"unmapped_category": "none"}], indirect=True)
async def test_the_operators_choice_for_what_sets_no_category_holds_here_too(client: httpx.AsyncClient) -> None:
    (result,) = (await judged(client, [""]))["results"]
    assert result["flagged"] is True
    assert not any(result["categories"].values())


@pytest.mark.parametrize(
    ("input_", "param", "code"),
    [
        ("", "input", "empty_input"),
        ([], "input", "empty_input"),
        ([text("x"), image("data:image/png;base64,AAAA")], "input[1].image_url.url", "invalid_value"),
        ([image("https://example.org/a.png")], "input[0].image_url.url", "remote_images_disabled"),
        (TOO_LONG, "input", "context_length_exceeded"),
        ([TOO_LONG], "input[0]", "context_length_exceeded"),
    ],
    ids=["text", "list", "picture", "address", "long", "long list"],
)
async def test_every_form_of_input_has_its_error_in_its_place(
    client: httpx.AsyncClient, backend: FakeBackend, input_: Any, param: str, code: str
) -> None:
    (result,) = (await judged(client, input_))["results"]
    assert (result["error"]["param"], result["error"]["code"]) == (param, code)
    assert backend.cases == []


OF_ONE_ROW = [EngineFailure("No."), DeadlineExceeded("No."), ContextLengthExceeded("No.", param="messages")]


@pytest.mark.parametrize("error", OF_ONE_ROW)
async def test_what_fails_for_one_row_leaves_the_others(
    client: httpx.AsyncClient, backend: FakeBackend, error: GuardError
) -> None:
    backend.script = failing_on("bad", error)
    body = await judged(client, ["bread", "bad", "a bomb", "bad"])
    assert [result.get("error", {}).get("code") for result in body["results"]] == [None, error.code, None, error.code]
    assert len(backend.cases) == 3  # equal rows are asked once
    if error.param:
        assert body["results"][1]["error"]["param"] == "input[1]"


@pytest.mark.parametrize("error", [EngineUnavailable("No."), Overloaded("No."), ShuttingDown("No.")])
async def test_the_state_of_the_server_is_the_error_of_all(
    client: httpx.AsyncClient, backend: FakeBackend, error: GuardError
) -> None:
    backend.script = failing_on("bad", error)
    response = await client.post(URL, json={"input": ["bread", "bad"], **EACH})
    error_of(response, error.status, code=error.code)


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "gpt-4o"}, 404, None),
        ({"policy": {"excluded_categories": ["S99"]}}, 400, "policy.excluded_categories"),
        ({"input": ["x"] * 10_000}, 400, "input"),
        ({"input": ["x", 5]}, 400, "input[1]"),
        ({"on_error": "ignore"}, 400, "on_error"),
    ],
)
async def test_a_fault_of_the_request_fails_it(
    client: httpx.AsyncClient, fields: dict[str, Any], status: int, param: str | None
) -> None:
    error_of(await client.post(URL, json={"input": ["x", ""], **EACH, **fields}), status, param=param)


async def test_a_conversation_has_no_items(client: httpx.AsyncClient) -> None:
    response = await client.post(URL, json={"messages": [{"role": "user", "content": "x"}], **EACH})
    error_of(response, 400, param="on_error")


@pytest.mark.parametrize("fields", [{}, {"on_error": None}, {"on_error": "fail"}, {"on_error": ""}])
async def test_without_the_wish_the_first_error_fails_the_list(
    client: httpx.AsyncClient, backend: FakeBackend, fields: dict[str, Any]
) -> None:
    error_of(await client.post(URL, json={"input": ["x", ""], **fields}), 400, param="input[1]", code="empty_input")
    assert backend.cases == []


async def test_rows_that_were_judged_count_and_errors_are_measured(
    client: httpx.AsyncClient, app: FastAPI, be: As
) -> None:
    be("key-a", tokens_per_minute=100_000)
    counted = errors_of((await client.get("/metrics")).text)
    response = await client.post(URL, json={"input": ["bread", "", "tea"], **EACH})
    used = sum(result["guard"]["usage"]["prompt_tokens"] for result in response.json()["results"] if "guard" in result)
    left = int(response.headers["x-ratelimit-remaining-tokens"])
    assert used > 400
    assert abs(100_000 - left - used - 2) < 200  # the bucket refills meanwhile
    assert response.headers["x-guard-backend"] == "fake"
    assert errors_of((await client.get("/metrics")).text) == counted + 1


def errors_of(exposition: str) -> float:
    return sum(
        float(line.split()[-1]) for line in exposition.splitlines() if 'errors_total{kind="empty_input"}' in line
    )


def test_openais_client_reads_them(live: LiveServer) -> None:
    client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", _strict_response_validation=True)
    reply = client.moderations.create(input=["bread", ""], extra_body=EACH)
    assert [result.flagged for result in reply.results] == [False, True]
    assert reply.results[1].error["code"] == "empty_input"  # type: ignore[attr-defined]
