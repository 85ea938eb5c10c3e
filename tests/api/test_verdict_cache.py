"""Kept and joined verdicts as callers and operators see them: marked, counted, free of cost, kept apart by key."""

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import pytest

from server.app import create_moderator
from server.checkpoints.profile import load_profile
from server.domain.caller import ORDINARY
from server.moderation.moderator import PROBE
from server.settings import Settings
from tests.api.conftest import PROFILE, As
from tests.api.test_operations import metrics
from tests.fakes import UNSAFE_WORD, FakeBackend, Gate, always, failing, held_at

ON = pytest.mark.parametrize("settings", [{"verdict_cache": 100}], indirect=True)
BOMB = f"a {UNSAFE_WORD}"
SAID = [{"role": "user", "content": BOMB}]

DIALECTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/moderations", {"input": BOMB}),
    ("/v1/moderations", {"messages": SAID}),
    ("/v1/chat/completions", {"messages": SAID}),
    ("/v1/responses", {"input": BOMB}),
    ("/api/v1/chat/completions", {"messages": SAID}),
    ("/beta/litellm_basic_guardrail_api", {"texts": [BOMB], "request_data": {}, "input_type": "request"}),
]


def detail(response: httpx.Response) -> dict[str, Any]:
    """The native verdict of any dialect's answer."""
    assert response.status_code == 200, response.text
    body = response.json()
    found = body["results"][0]["guard"] if "results" in body else body["guard"]
    guard: dict[str, Any] = found[0] if isinstance(found, list) else found
    return guard


@ON
@pytest.mark.parametrize(("path", "body"), DIALECTS)
async def test_a_hit_is_the_same_answer_marked(
    client: httpx.AsyncClient, backend: FakeBackend, path: str, body: dict[str, Any]
) -> None:
    first, second = [detail(await client.post(path, json=body)) for _ in range(2)]
    assert (first["cache"], second["cache"]) == (None, "hit")
    assert second["timing"] == {"queued": 0.0, "computed": 0.0}
    assert second["usage"] == {**first["usage"], "cached_tokens": first["usage"]["prompt_tokens"]}
    changed = {"cache", "timing", "usage"}
    assert {key: first[key] for key in first if key not in changed} == {
        key: second[key] for key in second if key not in changed
    }
    assert len(backend.cases) == 1


@ON
async def test_dialects_share_what_is_the_same_question(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    uses = [detail(await client.post(path, json=body))["cache"] for path, body in DIALECTS]
    assert uses == [None, *["hit"] * (len(DIALECTS) - 1)]
    assert len(backend.cases) == 1


async def test_by_default_nothing_is_kept(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    uses = [detail(await client.post("/v1/moderations", json={"input": BOMB}))["cache"] for _ in range(2)]
    assert uses == [None, None]
    assert len(backend.cases) == 2


async def test_what_is_asked_at_the_same_time_is_judged_once(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    gate = Gate()
    backend.script = held_at(gate)
    requests = [asyncio.create_task(client.post("/v1/moderations", json={"input": BOMB})) for _ in range(3)]
    await backend.busy_with(1)
    admission = client._transport.app.state.served.service.moderator.admission  # type: ignore[attr-defined]
    async with asyncio.timeout(5):
        while admission.admitted < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    gate.open()
    uses = [detail(response)["cache"] for response in await asyncio.gather(*requests)]
    assert sorted(uses, key=str) == [None, "joined", "joined"]
    assert len(backend.cases) == 1


async def test_a_list_that_repeats_itself_is_marked(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    response = await client.post("/v1/moderations", json={"input": [BOMB, "bread", BOMB]})
    results = response.json()["results"]
    assert [result["guard"]["cache"] for result in results] == [None, None, "joined"]
    assert [result["flagged"] for result in results] == [True, False, True]
    assert len(backend.cases) == 2


@ON
async def test_keys_do_not_learn_of_each_other(client: httpx.AsyncClient, backend: FakeBackend, be: As) -> None:
    uses = []
    for key in ("key_1", "key_2", "key_1", "key_2"):
        be(key)
        uses.append(detail(await client.post("/v1/moderations", json={"input": BOMB}))["cache"])
    assert uses == [None, None, "hit", "hit"]


@ON
async def test_hits_and_joins_are_counted_and_the_engine_knows_nothing_of_them(client: httpx.AsyncClient) -> None:
    await client.post("/v1/moderations", json={"input": BOMB})
    before = await metrics(client)
    await client.post("/v1/moderations", json={"input": [BOMB, "bread", "bread"]})
    after = await metrics(client)
    moved = {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)}
    assert {name: value for name, value in moved.items() if "request" not in name and "seconds_sum" not in name} == {
        "guard_cached_verdicts_total cache=hit": 1,
        "guard_cached_verdicts_total cache=joined": 1,
        "guard_verdicts_total backend=fake judged=user verdict=unsafe": 1,
        "guard_verdicts_total backend=fake judged=user verdict=safe": 2,
        "guard_verdict_categories_total category=S1": 1,
        "guard_verdict_categories_total category=S9": 1,
        "guard_passes_total": 1,
        "guard_verdict_seconds_count": 1,
        "guard_engine_queue_seconds_count": 1,
        "guard_tokens_total kind=prompt": 202,
        "guard_tokens_total kind=cached": 128,
        "guard_tokens_total kind=completion": 1,
        "guard_backend_tokens_total backend=fake": 203,
    }


@ON
async def test_a_hit_counts_against_the_limits_of_its_key(client: httpx.AsyncClient, be: As) -> None:
    be("key_1", tokens_per_minute=6000)
    left = []
    for _ in range(3):
        response = await client.post("/v1/moderations", json={"input": BOMB})
        left.append(int(response.headers["x-ratelimit-remaining-tokens"]))
    assert left[0] - left[1] == pytest.approx(left[1] - left[2], abs=20)
    assert left[0] - left[2] > 350


@ON
async def test_a_hit_of_a_remote_backend_is_not_paid_again(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = always("safe", provider="Somebody", cost=0.25)
    replies = [(await client.post("/api/v1/chat/completions", json={"messages": SAID})).json() for _ in range(2)]
    assert [reply["usage"]["cost"] for reply in replies] == [0.25, 0.0]
    assert (await client.get("/api/v1/key")).json()["data"]["usage"] == 0.25


@ON
async def test_a_hit_comes_from_a_dead_engine_and_ready_tells_the_truth(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    await client.post("/v1/moderations", json={"input": BOMB})
    backend.alive, backend.script = False, failing(AssertionError())
    assert detail(await client.post("/v1/moderations", json={"input": BOMB}))["cache"] == "hit"
    assert (await client.get("/ready")).status_code == 503
    assert (await client.get("/health")).status_code == 503


@pytest.mark.parametrize("settings", [{"verdict_cache": 2, "verdict_cache_ttl": 60.0}], indirect=True)
async def test_the_setting_bounds_what_is_kept(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    uses = [detail(await client.post("/v1/moderations", json={"input": text}))["cache"] for text in "abcacb"]
    assert uses == [None, None, None, None, "hit", None]


def test_a_key_names_the_model_and_how_it_is_asked() -> None:
    profile, settings = load_profile(PROFILE), Settings(profile=PROFILE)
    served = [
        (profile, settings),
        (replace(profile, model="another"), settings),
        (replace(profile, revision="abc"), settings),
        (replace(profile, chat_template="another"), settings),
        (replace(profile, engine={"dtype": "float32"}), settings),
        (profile, Settings(profile=PROFILE, minimum_verdict_mass=0.8)),
        (profile, Settings(profile=PROFILE, category_scores_from=0.0)),
        (profile, Settings(profile=PROFILE, animation_frames=2)),
    ]
    keys = []
    for profile_, settings_ in [*served, served[0]]:
        moderator = create_moderator(settings_, profile_, FakeBackend())
        keys.append(moderator._questions.key(PROBE, moderator.policy, ORDINARY))
        moderator.close()
    assert len(set(keys)) == len(served)
    assert keys[0] == keys[-1]
