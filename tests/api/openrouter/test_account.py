"""What a key may do, and credits, in OpenRouter's words."""

from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from server.api import middleware
from server.caller import ANYONE, Caller, Scope
from tests.api.openrouter.shapes import obeys_openrouter


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


async def test_a_keys_own_limits(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = Caller("key-a", frozenset({Scope.MODERATE}), never_remote=True, requests_per_minute=60)
    monkeypatch.setattr(middleware, "ANYONE", caller)
    data = (await client.get("/api/v1/key")).json()["data"]
    assert data["label"] == "key-a"
    assert (data["rate_limit"]["requests"], data["rate_limit"]["interval"]) == (60, "1m")
    assert data["guard"] == {
        "scopes": ["moderate"],
        "never_remote": True,
        "requests_per_minute": 60,
        "tokens_per_minute": None,
    }


async def test_a_generation_is_its_keys_alone(
    client: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(middleware, "ANYONE", replace(ANYONE, id="key-a"))
    body = {"messages": [{"role": "user", "content": "x"}]}
    id_ = (await client.post("/api/v1/chat/completions", json=body)).json()["id"]
    assert (await client.get("/api/v1/generation", params={"id": id_})).status_code == 200
    monkeypatch.setattr(middleware, "ANYONE", replace(ANYONE, id="key-b"))
    assert (await client.get("/api/v1/generation", params={"id": id_})).status_code == 404


async def test_no_credits_are_needed(client: httpx.AsyncClient) -> None:
    assert await data_of(client, "/credits") == {"total_credits": 0, "total_usage": 0}


async def test_the_key_obeys_openrouters_own_schema(client: httpx.AsyncClient) -> None:
    await data_of(client, "/key")
