"""Scores of the categories of safe verdicts: real ones from a floor on, for all who ask, and bounds that are small."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.api.openai.test_batches import answers, create, ended, line
from tests.api.shapes import OPENAI_CATEGORIES, error_of
from tests.fakes import FakeBackend, always

MESSAGES = [{"role": "user", "content": "words"}]
ALL = {"category_scores": "all"}

BODIES: dict[str, tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "moderations": ("/v1/moderations", lambda wish: {"input": "words", **wish}),
    "the Llama API's moderations": ("/v1/moderations", lambda wish: {"messages": MESSAGES, **wish}),
    "chat completions": ("/v1/chat/completions", lambda wish: {"messages": MESSAGES, **wish}),
    "OpenRouter's chat completions": ("/api/v1/chat/completions", lambda wish: {"messages": MESSAGES, **wish}),
    "responses": ("/v1/responses", lambda wish: {"input": "words", **wish}),
    "LiteLLM": (
        "/beta/litellm_basic_guardrail_api",
        lambda wish: {"input_type": "request", "texts": ["words"], "additional_provider_specific_params": wish},
    ),
}


def guard_of(document: dict[str, Any]) -> dict[str, Any]:
    guard = document["guard"] if "guard" in document else document["results"][0]["guard"]
    return guard[0] if isinstance(guard, list) else guard  # type: ignore[no-any-return]


async def ask(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("settings", "p_unsafe", "method"),
    [
        ({}, 0.049, "upper_bound"),
        ({}, 0.051, "first_code"),
        ({}, 0.438, "first_code"),
        ({"category_scores_from": 0.0}, 0.0, "first_code"),
        ({"category_scores_from": 0.2}, 0.19, "upper_bound"),
        ({"category_scores_from": 1.0}, 0.49, "upper_bound"),
    ],
    indirect=["settings"],
)
async def test_a_safe_verdict_has_real_scores_from_the_floor_on(
    client: httpx.AsyncClient, backend: FakeBackend, p_unsafe: float, method: str
) -> None:
    backend.script = always("safe", p_unsafe=p_unsafe)
    result = (await ask(client, "/v1/moderations", {"input": "words"}))["results"][0]
    assert result["flagged"] is False
    assert result["guard"]["category_score_method"] == method
    assert result["guard"]["no_scores"] is None
    expected = pytest.approx(p_unsafe if method == "upper_bound" else 0.01 * p_unsafe)
    assert result["category_scores"]["sexual/minors"] == expected
    assert result["guard"]["category_scores"] == {f"S{number}": expected for number in range(1, 15)}


@pytest.mark.parametrize(("path", "body"), BODIES.values(), ids=BODIES)
@pytest.mark.parametrize("settings", [{}, {"request_policy": False}], ids=["", "no policies"], indirect=True)
async def test_a_request_can_ask_for_all_scores(
    client: httpx.AsyncClient, path: str, body: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    """It changes no verdict, so nobody has to allow it."""
    for wish, method in ({}, "upper_bound"), (ALL, "first_code"), ({"category_scores": None}, "upper_bound"):
        guard = guard_of(await ask(client, path, body(wish)))
        assert (guard["verdict"], guard["category_score_method"]) == ("safe", method)
        assert guard["p_unsafe"] == pytest.approx(0.02)


@pytest.mark.parametrize("wish", ["ALL", "always", "none", "x", True, 1, ["all"], {"from": 0}])
@pytest.mark.parametrize(("path", "body"), BODIES.values(), ids=BODIES)
async def test_another_wish_is_refused(
    client: httpx.AsyncClient,
    backend: FakeBackend,
    path: str,
    body: Callable[[dict[str, Any]], dict[str, Any]],
    wish: Any,
) -> None:
    response = await client.post(path, json=body({"category_scores": wish}))
    assert response.status_code == 400
    if path.startswith("/v1"):
        error_of(response, 400, param="category_scores")
    assert backend.cases == []


async def test_a_wish_goes_with_a_policy(client: httpx.AsyncClient) -> None:
    body = {"input": "words", "policy": {"categories": {"S1": "Spoilers."}}, **ALL}
    guard = guard_of(await ask(client, "/v1/moderations", body))
    assert (list(guard["category_scores"]), guard["category_score_method"]) == (["S1"], "first_code")


@pytest.mark.parametrize("settings", [{"verdict_cache": 100}], indirect=True)
async def test_a_verdict_with_bounds_does_not_answer_who_wants_scores(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    seen = []
    for wish in ({}, ALL, {}, ALL):
        guard = guard_of(await ask(client, "/v1/moderations", {"input": "words", **wish}))
        seen.append((guard["category_score_method"], guard["cache"]))
    assert seen == [("upper_bound", None), ("first_code", None), ("upper_bound", "hit"), ("first_code", "hit")]
    assert len(backend.cases) == 2


async def test_a_backend_that_cannot_score_shows_no_bound_that_is_not_small(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    unscored = {"shares": None, "score_method": None, "no_scores": "it has none"}
    backend.script = always("safe", p_unsafe=0.3, **unscored)
    (result,) = (await ask(client, "/v1/moderations", {"input": "words"}))["results"]
    assert result["guard"]["category_scores"] is None
    assert result["guard"]["category_score_method"] is None
    assert result["guard"]["no_scores"] == "it has none"
    assert result["category_scores"] == dict.fromkeys(OPENAI_CATEGORIES, 0.0)

    backend.script = always("unsafe\nS9", p_unsafe=0.7, **unscored)
    (result,) = (await ask(client, "/v1/moderations", {"input": "words"}))["results"]
    assert {name: score for name, score in result["category_scores"].items() if score} == dict.fromkeys(
        ("illicit", "illicit/violent"), pytest.approx(0.7)
    )


async def test_lines_of_a_batch_can_ask_too(client: httpx.AsyncClient) -> None:
    batch = await create(client, line("plain", {"input": "words"}), line("all", {"input": "words", **ALL}))
    rows = await answers(client, await ended(client, batch))
    methods = {row["custom_id"]: guard_of(row["response"]["body"])["category_score_method"] for row in rows}
    assert methods == {"plain": "upper_bound", "all": "first_code"}
