"""What a key may do, and credits, in OpenRouter's words."""

import json
from collections.abc import Awaitable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response

from server.api.http.state import RequestState
from server.api.openrouter import account, generations
from server.domain.caller import Caller, Scope
from server.domain.errors import GenerationNotFound
from tests.api.openrouter.shapes import obeys_openrouter
from tests.api.openrouter.test_generations import GENERATION


def asked_by(caller: Caller, app: FastAPI) -> Request:
    scope = {"type": "http", "app": app, "headers": []}
    RequestState.begin(scope).caller = caller
    return Request(scope)


async def data_in(answer: Awaitable[Response]) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(bytes((await answer).body))["data"]
    return data


async def data_of(client: httpx.AsyncClient, path: str) -> dict[str, Any]:
    body = (await client.get(f"/api/v1{path}")).json()
    obeys_openrouter(body, path=path)
    data: dict[str, Any] = body["data"]
    return data


async def test_without_keys_nothing_is_limited(client: httpx.AsyncClient) -> None:
    data = (await client.get("/api/v1/key")).json()["data"]
    assert data["label"] == "no key"
    assert (data["limit"], data["limit_remaining"], data["usage"]) == (None, None, 0)
    assert data["rate_limit"]["requests"] == -1
    assert data["is_free_tier"] is False
    assert data["guard"]["scopes"] == ["admin", "batch", "moderate"]


async def test_a_keys_own_limits(app: FastAPI) -> None:
    caller = Caller("key-a", frozenset({Scope.MODERATE}), never_remote=True, requests_per_minute=60)
    data = await data_in(account.get_key(asked_by(caller, app)))
    assert data["label"] == "key-a"
    assert (data["rate_limit"]["requests"], data["rate_limit"]["interval"]) == (60, "1m")
    assert data["guard"] == {
        "scopes": ["moderate"],
        "never_remote": True,
        "finished_prompts": False,
        "requests_per_minute": 60,
        "tokens_per_minute": None,
    }


async def test_a_keys_own_use_and_generations(app: FastAPI) -> None:
    app.state.served.kept(generations.Generations).add(GENERATION)
    owner, other = (asked_by(Caller(id_, frozenset(Scope)), app) for id_ in ("key-a", "key-b"))
    assert (await data_in(account.get_key(owner)))["usage"] == 0.5
    assert (await data_in(account.get_key(other)))["usage"] == 0
    assert (await data_in(generations.get_generation(owner, "gen-1")))["id"] == "gen-1"
    with pytest.raises(GenerationNotFound):
        await generations.get_generation(other, "gen-1")


async def test_no_credits_are_needed(client: httpx.AsyncClient) -> None:
    assert await data_of(client, "/credits") == {"total_credits": 0, "total_usage": 0}


async def test_the_key_obeys_openrouters_own_schema(client: httpx.AsyncClient) -> None:
    await data_of(client, "/key")


async def test_the_older_path_of_the_key(client: httpx.AsyncClient) -> None:
    assert (await client.get("/api/v1/auth/key")).json() == (await client.get("/api/v1/key")).json()
