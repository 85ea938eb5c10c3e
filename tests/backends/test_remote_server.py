"""The whole application with a remote backend: what callers, operators and monitors see."""

import asyncio
import contextlib
import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from server import loading
from server.app import create_app
from server.backends.base import Backend, Case
from server.backends.fallback import FallbackBackend
from server.backends.openrouter.backend import OpenRouterBackend
from server.backends.openrouter.breaker import Breaker
from server.checkpoints import fit
from server.checkpoints.profile import load_profile
from server.commands import doctor
from server.domain.caller import Handling
from server.domain.conversation import Conversation, TextPart
from server.domain.errors import EngineUnavailable, OperatorError, RemoteRejected
from server.loading import load_backend
from server.observation import metrics
from server.settings import Settings
from tests.api.parts import image, text
from tests.api.shapes import error_of, obeys_openai
from tests.backends.conftest import TAXONOMY
from tests.fakes import FakeBackend, by_word, failing, hanging, until
from tests.openrouter import (
    KEY,
    MODEL,
    ScriptedOpenRouter,
    answer,
    failure,
    hangs_up,
    http,
    says,
    scripted_openrouter,
    stalls,
)
from tests.readings import FAMILY

PROFILE = load_profile("llama-guard-4-12b")
DEAD = failing(EngineUnavailable("The engine is not running."))
CANARY = "zebra crossing"
ROOT = Path(__file__).parents[2]


def by_word_or_hang(case: Case) -> Any:
    return hanging(case) if case.conversation.turns[0].texts[0].startswith("hang") else by_word(case)


@contextlib.asynccontextmanager
async def serving(settings: Settings, backend: Backend) -> AsyncIterator[tuple[httpx.AsyncClient, FastAPI]]:
    app = create_app(settings, PROFILE, backend)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client,
    ):
        yield client, app


def remote_only(remote: ScriptedOpenRouter, **changes: Any) -> Any:
    settings = remote.settings(**changes)
    return serving(settings, load_backend(settings, PROFILE))


def behind(remote: ScriptedOpenRouter, local: Backend, **changes: Any) -> Any:
    settings = remote.settings(**({"backend": "vllm", "fallback": "openrouter", "openrouter_retries": 0} | changes))
    backend = FallbackBackend(
        local,
        OpenRouterBackend(settings, TAXONOMY, FAMILY),
        after_s=settings.fallback_after,
        places=settings.max_queue,
        context_tokens=32_768,
    )
    return serving(settings, backend)


async def judged(client: httpx.AsyncClient, words: Any, **fields: Any) -> httpx.Response:
    headers = fields.pop("headers", {})
    return await client.post("/v1/moderations", json={"input": words, **fields}, headers=headers)


async def samples(client: httpx.AsyncClient) -> dict[str, float]:
    families = text_string_to_metric_families((await client.get("/metrics")).text)
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in families
        for sample in family.samples
    }


# --- The remote alone -------------------------------------------------------------------------------------


async def test_moderations_and_chat_name_who_judged_and_invent_no_score(remote: ScriptedOpenRouter) -> None:
    async with remote_only(remote) as (client, _):
        response = await judged(client, "a bomb")
        document = response.json()
        obeys_openai(document, "CreateModerationResponse")
        (result,) = document["results"]
        assert response.headers["x-guard-backend"] == "openrouter"
        guard = result["guard"]
        assert (guard["verdict"], guard["categories"], guard["backend"]) == ("unsafe", ["S1", "S9"], "openrouter")
        assert (guard["p_unsafe"], guard["category_scores"], guard["verdict_mass"]) == (None, None, None)
        assert guard["no_scores"] == "the remote backend reports no probabilities"
        assert (guard["provider"], guard["cost"]) == ("DeepInfra", 0.0000384)
        assert guard["model"] == "meta-llama/llama-guard-4-12b"
        assert (await client.get("/ready")).json()["model"] == guard["model"]
        # OpenAI's own map has room for floats only: there they are the flags again.
        assert result["category_scores"] == {name: float(flag) for name, flag in result["categories"].items()}

        chat = await client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "bread"}]})
        assert chat.json()["choices"][0]["message"]["content"] == "safe"
        assert chat.json()["usage"]["prompt_tokens"] == 210
        assert chat.headers["x-guard-backend"] == "openrouter"


async def test_an_image_from_a_caller_to_the_remote(remote: ScriptedOpenRouter) -> None:
    async with remote_only(remote) as (client, _):
        response = await judged(client, [text("What is this?"), image()])
    assert response.json()["results"][0]["guard"]["usage"]["images"] == 1
    (part, _) = remote.calls[0].json["messages"][0]["content"]
    assert part["image_url"]["url"].startswith("data:image/png;base64,")


async def test_what_may_not_leave_is_refused(remote: ScriptedOpenRouter) -> None:
    async with remote_only(remote) as (client, _):
        for fields in (
            {"words": "x", "headers": {"x-guard-never-remote": "1"}},
            {"words": "x", "policy": {"threshold": 0.3}},
            {"words": "x", "policy": {"excluded_categories": ["S5"]}},
            {"words": "x", "policy": {"categories": {"S1": "Spoilers."}}},
        ):
            error_of(await judged(client, **fields), 400, code="remote_refused", type="invalid_request_error")
    assert remote.calls == []


async def test_what_leaves_spells_no_control_token(remote: ScriptedOpenRouter) -> None:
    """A provider's tokenizer may take it for a real one."""
    async with remote_only(remote) as (client, _):
        response = await judged(client, "x <|eot|> y")
        assert response.json()["results"][0]["guard"]["lookalikes"] == 2
    sent = [message["content"] for call in remote.calls for message in json.loads(call.body)["messages"]]
    assert "x ‹|eot|› y" in sent
    assert not any("<|eot|>" in call.body.decode() for call in remote.calls)


@pytest.mark.parametrize(
    ("play", "status", "code"),
    [
        (answer(401, failure(401)), 502, "remote_rejected"),
        (answer(429, failure(429), retry_after="7"), 429, "rate_limit_exceeded"),
        (answer(500, failure(500)), 502, "remote_failure"),
        (hangs_up, 502, "remote_failure"),
        (says("I'm sorry"), 500, "unparseable_verdict"),
        (says("safe", choice={"finish_reason": "content_filter"}), 500, "engine_failure"),
    ],
)
async def test_faults_are_told_in_the_callers_dialect(
    remote: ScriptedOpenRouter, play: Any, status: int, code: str, caplog: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    remote.script = play
    async with remote_only(remote, openrouter_retries=0) as (client, _):
        response = await judged(client, CANARY)
        error_of(response, status, code=code)
        assert response.headers.get("retry-after") == ("7" if status == 429 else None)
        told = response.text + (await client.get("/metrics")).text + caplog.text
    assert KEY not in told
    assert "zebra" not in told


async def test_the_deadline_of_a_request_is_one(remote: ScriptedOpenRouter) -> None:
    remote.script = stalls
    async with remote_only(remote, deadline=0.4, openrouter_timeout=10) as (client, _):
        started = asyncio.get_running_loop().time()
        response = await judged(client, "x")
        assert response.status_code in (502, 504)
        assert asyncio.get_running_loop().time() - started < 0.8


async def test_an_idle_server_pays_nothing_and_stays_ready(remote: ScriptedOpenRouter) -> None:
    async with remote_only(remote, probe_interval=0.05, ready_max_age=0.2) as (client, _):
        for _ in range(30):
            assert (await client.get("/ready")).status_code == 200
            await asyncio.sleep(0.02)
        assert (len(remote.calls), len(remote.looks)) == (0, 2)


async def test_a_remote_that_fails_again_and_again_is_not_ready_but_alive(remote: ScriptedOpenRouter) -> None:
    """A restart would not end the provider's outage, however long it is."""
    settings = remote.settings(probe_interval=0.05, ready_max_age=0.2, hung_after=0.3, openrouter_retries=0)
    backend = OpenRouterBackend(settings, TAXONOMY, FAMILY, Breaker(failures=2, rest_s=0.5))
    remote.script = answer(503, failure(503))
    async with serving(settings, backend) as (client, app):
        for _ in range(2):
            await judged(client, "x")
        readiness = app.state.served.readiness
        await until(lambda: readiness.reason_not_ready() is not None)
        await asyncio.sleep(0.5)
        assert (await client.get("/health")).status_code == 200
        remote.script = says("safe")
        await until(lambda: readiness.reason_not_ready() is None)
        assert (await judged(client, "x")).status_code == 200


async def test_a_model_that_is_gone_stops_the_start(remote: ScriptedOpenRouter) -> None:
    remote.documents[f"/api/v1/models/{MODEL}/endpoints"] = http(404, failure(404))
    with pytest.raises(RemoteRejected, match="does not offer"):
        async with remote_only(remote):
            pytest.fail("it served without a model")


# --- Behind the local engine ------------------------------------------------------------------------------


async def test_a_dead_engine_is_carried_and_the_monitors_see_it(remote: ScriptedOpenRouter, caplog: Any) -> None:
    local = FakeBackend()
    async with behind(remote, local, probe_interval=0.05, ready_max_age=0.3) as (client, _):
        before = await samples(client)
        assert (await judged(client, "a bomb")).headers["x-guard-backend"] == "fake"
        local.script, local.alive = DEAD, False
        response = await judged(client, "a bomb")
        assert response.headers["x-guard-backend"] == "openrouter"
        assert response.json()["results"][0]["guard"]["backend"] == "openrouter"
        await until(lambda: "THE LOCAL ENGINE IS dead" in caplog.text)
        await asyncio.sleep(0.4)
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ready")).status_code == 200
        after = await samples(client)
        assert (after["guard_backend_alive fake"], after["guard_backend_alive openrouter"]) == (0, 1)
        assert after["guard_remote_breaker closed"] == 1
        for name, moved in {
            "guard_fallback_moves_total engine_down": 1,
            "guard_verdicts_total openrouter user unsafe": 1,
            "guard_verdicts_total fake user unsafe": 1,
            "guard_cost_dollars_total openrouter": 0.0000384,
            "guard_backend_tokens_total openrouter": 215,
        }.items():
            assert after[name] - before.get(name, 0) == pytest.approx(moved)
        assert len(remote.calls) == 1
        error_of(await judged(client, "x", headers={"x-guard-never-remote": "yes"}), 503, code="engine_unavailable")
        error_of(await judged(client, "x", policy={"threshold": 0.3}), 503, code="engine_unavailable")
        assert len(remote.calls) == 1


async def test_a_list_judged_by_both_names_both(remote: ScriptedOpenRouter) -> None:
    local = FakeBackend()
    local.script = by_word_or_hang
    async with behind(remote, local, fallback_after=0.1) as (client, _):
        response = await judged(client, ["hang", "bread"])
    assert response.headers["x-guard-backend"] == "openrouter, fake"


async def test_neither_is_dead(remote: ScriptedOpenRouter) -> None:
    local = FakeBackend()
    async with behind(remote, local, probe_interval=0.05, ready_max_age=0.2) as (client, app):
        local.script, local.alive = DEAD, False
        breaker = app.state.served.service.moderator.backend.remote._breaker = Breaker(failures=1, rest_s=60)
        breaker.failed(breaker.enter())
        assert (await client.get("/health")).status_code == 503
        assert (await client.get("/ready")).status_code == 503
        error_of(await judged(client, "x"), 503, code="engine_unavailable")
    assert remote.calls == []


async def test_the_queue_grows_by_what_the_remote_takes(remote: ScriptedOpenRouter) -> None:
    local = FakeBackend(by_word_or_hang)
    async with behind(remote, local, max_queue=3, list_concurrency=1, openrouter_concurrency=2) as (client, _):
        waiting = [asyncio.create_task(judged(client, f"hang {number}")) for number in range(3)]
        await until(lambda: local.running == 3)
        assert (await judged(client, "x")).headers["x-guard-backend"] == "openrouter"
        error_of(await judged(client, "x", headers={"x-guard-never-remote": "1"}), 429)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_batch_work_waits_for_the_engine(remote: ScriptedOpenRouter) -> None:
    local = FakeBackend()
    async with behind(remote, local) as (_, app):
        local.script = DEAD
        with pytest.raises(EngineUnavailable):
            await app.state.served.service.moderator.moderate(
                Conversation.from_user(TextPart("x")), handling=Handling(background=True)
            )
    assert remote.calls == []


# --- Nothing leaves unasked -------------------------------------------------------------------------------


async def test_nothing_leaves_unless_it_is_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every socket is refused, the engine is dead, and a key lies around: nobody even tries to connect."""
    attempts: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> None:
        attempts.append(arguments[1:])
        raise OSError("refused by the test")

    settings = Settings(profile="llama-guard-4-12b", openrouter_api_key=KEY, probe_interval=0.02, ready_max_age=0.05)
    local = FakeBackend()
    async with serving(settings, local) as (client, _):
        for name in ("connect", "connect_ex", "sendto"):
            monkeypatch.setattr(socket.socket, name, refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        loop = asyncio.get_running_loop()
        for name in ("sock_connect", "create_connection", "getaddrinfo"):
            monkeypatch.setattr(type(loop), name, refuse, raising=True)
        local.script, local.alive = DEAD, False
        for words in ("x", ["x", "y"], [text("x"), image()]):
            error_of(await judged(client, words), 503, code="engine_unavailable")
        error_of(await judged(client, [image("https://example.org/x.png")]), 400, code="remote_images_disabled")
        await client.get("/metrics")
        await asyncio.sleep(0.1)
        assert (await client.get("/ready")).status_code == 503
        assert attempts == []
        monkeypatch.undo()


async def test_the_hook_of_the_test_above_sees_a_remote_that_is_configured(
    remote: ScriptedOpenRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = FakeBackend()
    attempts: list[Any] = []
    async with behind(remote, local) as (client, _):
        loop = asyncio.get_running_loop()
        original = type(loop).create_connection

        async def watched(self: Any, *arguments: Any, **keywords: Any) -> Any:
            attempts.append(arguments[1:])
            return await original(self, *arguments, **keywords)

        monkeypatch.setattr(type(loop), "create_connection", watched)
        local.script = DEAD
        await asyncio.gather(judged(client, "x"), judged(client, "y"))
    assert attempts


# --- From settings ----------------------------------------------------------------------------------------


def test_the_right_backend_is_loaded(remote: ScriptedOpenRouter, monkeypatch: pytest.MonkeyPatch) -> None:
    def local(settings: Settings, profile: Any) -> FakeBackend:
        return FakeBackend()

    monkeypatch.setattr(loading, "_local", local)
    assert isinstance(load_backend(Settings(), PROFILE), FakeBackend)
    assert isinstance(load_backend(remote.settings(), PROFILE), OpenRouterBackend)
    fallback = load_backend(remote.settings(backend="vllm", fallback="openrouter"), PROFILE)
    assert isinstance(fallback, FallbackBackend)
    assert isinstance(fallback.local, FakeBackend)


def test_a_remote_needs_neither_a_gpu_nor_a_checkpoint_nor_vllm(remote: ScriptedOpenRouter, tmp_path: Path) -> None:
    """The command line in a process of its own, where the engine's packages cannot be imported."""
    for package in ("vllm", "torch", "transformers"):
        (tmp_path / f"{package}.py").write_text("raise ImportError('kept out by the test')")
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": f"{tmp_path}:{ROOT}",
        "GUARD_BACKEND": "openrouter",
        "GUARD_OPENROUTER_API_KEY": KEY,
        "GUARD_OPENROUTER_URL": remote.url,
        "GUARD_DATA_DIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "server", "check", "--json"]

    def check(words: str) -> tuple[int, Any]:
        done = subprocess.run([*command, words], env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert KEY not in done.stdout + done.stderr
        assert words not in done.stderr
        return done.returncode, json.loads(done.stdout)

    status, found = check("how to make a bomb")
    assert (status, found["verdict"], found["backend"], found["p_unsafe"]) == (1, "unsafe", "openrouter", None)
    remote.script = answer(402, failure(402))
    status, found = check("how to bake bread")
    assert (status, found["error"]["code"]) == (2, "remote_rejected")


def test_a_profile_with_other_categories_has_no_remote(remote: ScriptedOpenRouter) -> None:
    other = replace(PROFILE, taxonomy=PROFILE.taxonomy.without(["S5"]))
    with pytest.raises(OperatorError, match="does not have the categories"):
        load_backend(remote.settings(), other)


# --- The doctor -------------------------------------------------------------------------------------------


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "find_gpus", lambda: ())


def diagnosed(capsys: Any, settings: Settings) -> tuple[int, Any, str]:
    status = doctor.run(None, None, as_json=True, settings=settings)
    document = json.loads(capsys.readouterr().out)
    doctor.run(None, None, as_json=False, settings=settings)
    return status, document["remote"], capsys.readouterr().out


@pytest.mark.usefixtures("no_gpu")
def test_the_doctor_shows_the_offer(capsys: Any) -> None:
    with scripted_openrouter() as remote:
        status, found, words = diagnosed(capsys, remote.settings(price_per_hour=1.8, openrouter_ignore="groq"))
    assert (status, found["fault"]) == (0, None)
    assert [(row["name"], row["allowed"]) for row in found["providers"]] == [("DeepInfra", True), ("Groq", False)]
    assert found["break_even_tokens_per_hour"] == 10_000_000
    assert f"Remote   {MODEL} at {remote.url}: offered" in words
    assert "DeepInfra (deepinfra/bf16): 163,840 tokens, $0.18 in and $0.18 out per million, uptime 99.5 %" in words
    assert "Groq (groq): 163,840 tokens" in words
    assert "(excluded by the settings)" in words
    assert "$1.8, an hour here, is 10.0 million prompt tokens there" in words
    assert KEY not in words
    assert remote.calls == []


@pytest.mark.usefixtures("no_gpu")
def test_the_doctor_says_what_is_wrong(capsys: Any) -> None:
    with scripted_openrouter() as remote:
        remote.documents["/api/v1/key"] = http(401, failure(401))
        status, found, words = diagnosed(capsys, remote.settings())
        assert (status, found["providers"]) == (1, [])
        assert "OpenRouter refuses the key." in words
        assert doctor.run(None, 80, as_json=True, settings=remote.settings(backend="vllm", fallback="openrouter")) == 0


@pytest.mark.usefixtures("no_gpu")
def test_the_doctor_asks_nobody_unless_it_is_configured(capsys: Any) -> None:
    with scripted_openrouter() as remote:
        settings = Settings(openrouter_api_key=KEY, openrouter_url=remote.url)
        assert diagnosed(capsys, settings)[1] is None
        assert (remote.looks, remote.connections) == ([], 0)


# --- What a machine costs ---------------------------------------------------------------------------------


async def test_the_local_machine_costs_its_price_times_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    cost = metrics.LocalCost("priced", 3.6)
    clock[0] += 500
    cost.count()
    cost.count()
    metrics.BACKEND_TOKENS.labels("priced").inc(250_000)
    metrics.compare_costs(["priced", "unpriced"])
    monkeypatch.undo()
    value = REGISTRY.get_sample_value
    assert value("guard_cost_dollars_total", {"backend": "priced"}) == pytest.approx(0.5)
    assert value("guard_cost_dollars_per_million_tokens", {"backend": "priced"}) == pytest.approx(2.0)
    assert value("guard_cost_dollars_per_million_tokens", {"backend": "unpriced"}) is None


async def test_both_costs_stand_beside_each_other(remote: ScriptedOpenRouter) -> None:
    local = FakeBackend()
    async with behind(remote, local, price_per_hour=2.0) as (client, _):
        await judged(client, "x")
        local.script = DEAD
        await judged(client, "x")
        found = await samples(client)
    assert found["guard_cost_dollars_total fake"] > 0
    assert found["guard_cost_dollars_per_million_tokens fake"] > 0
    assert found["guard_cost_dollars_per_million_tokens openrouter"] > 0
