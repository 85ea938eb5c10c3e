"""A server on the stand-in: it takes no other model's name, and it does not see pictures."""

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import pytest_asyncio

from server.app import create_app
from server.checkpoints.profile import load_profile
from server.commands import serve as serving
from server.moderation.judges import judges_of
from server.settings import Settings
from tests.api.openrouter.shapes import error_of as openrouter_error_of
from tests.api.parts import image, picture, text
from tests.api.shapes import error_of
from tests.fakes import FakeBackend

POCKET = load_profile("pocket")
REAL = ["meta-llama/Llama-Guard-4-12B", "meta-llama/llama-guard-4-12b", "llama-guard-4-12b", "LLAMA-GUARD-4-12B"]
DRESSED = [
    "openai/meta-llama/Llama-Guard-4-12B",
    "openrouter/llama-guard-4-12b:free",
    "meta-llama/llama-guard-4-12b:nitro",
]
GENERIC = [None, "llama-guard", "Llama-Guard", "omni-moderation-latest", "openai/llama-guard", "text-moderation-007"]
OWN = ["llama-guard-pocket", "pocket", "llama-guard-server/llama-guard-pocket"]

JUDGE_TEXT = {"unseen_images": "judge_text"}
SEEN = [text("a bomb"), image()]


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> Settings:
    return Settings(profile="pocket", **getattr(request, "param", {}))


@pytest_asyncio.fixture
async def client(settings: Settings, backend: FakeBackend) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(settings, load_profile(settings.profile), backend)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client,
    ):
        yield client


def asks(content: str | list[dict[str, Any]], model: str | None = None) -> dict[str, dict[str, Any]]:
    """`content` in the dialects that take a model's name: path to body."""
    user = [{"role": "user", "content": content}]
    parts = [text(content)] if isinstance(content, str) else content
    items = [
        {"type": "input_text", "text": part["text"]}
        if part["type"] == "text"
        else {"type": "input_image", "image_url": part["image_url"]["url"]}
        for part in parts
    ]
    return {
        "/v1/moderations": {"input": content, "model": model},
        "/v1/chat/completions": {"messages": user, "model": model},
        "/api/v1/chat/completions": {"messages": user, "model": model},
        "/v1/responses": {"input": [{"role": "user", "content": items}], "model": model},
    }


def guard_of(body: dict[str, Any]) -> dict[str, Any]:
    guard: dict[str, Any] = body["guard"] if "guard" in body else body["results"][0]["guard"]
    return guard


# --- Names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*REAL, *DRESSED])
async def test_the_name_of_a_real_model_is_not_found_and_told_what_to_do(client: httpx.AsyncClient, name: str) -> None:
    for path, body in asks("x", name).items():
        told = openrouter_error_of if path.startswith("/api/") else error_of
        error = told(await client.post(path, json=body), 404)
        assert "serves llama-guard-pocket" in error["message"]
        assert "GUARD_MODEL_ALIASES" in error["message"]
    error_of(await client.get(f"/v1/models/{name}"), 404, code="model_not_found")
    author, _, slug = name.rpartition("/")
    if author and "/" not in author:
        openrouter_error_of(await client.get(f"/api/v1/model/{author}/{slug}"), 404, code="model_not_found")
        openrouter_error_of(await client.get(f"/api/v1/models/{author}/{slug}/endpoints"), 404, code="model_not_found")


@pytest.mark.parametrize("name", [*GENERIC, *OWN])
async def test_what_any_moderation_server_takes_stays(client: httpx.AsyncClient, name: str | None) -> None:
    for path, body in asks("x", name).items():
        answer = (await client.post(path, json=body)).json()
        assert answer["model"].removeprefix("llama-guard-server/") == "llama-guard-pocket", path


@pytest.mark.parametrize(
    "settings", [{"model_aliases": "meta-llama/Llama-Guard-4-12B,llama-guard-4-12b"}], indirect=True
)
@pytest.mark.parametrize("name", [*REAL, *DRESSED])
async def test_an_operator_may_map_the_name_and_replies_still_say_who_judged(
    client: httpx.AsyncClient, name: str
) -> None:
    for path, body in asks("x", name).items():
        answer = (await client.post(path, json=body)).json()
        assert answer["model"].removeprefix("llama-guard-server/") == "llama-guard-pocket", path


async def test_nothing_that_it_serves_names_the_real_model(client: httpx.AsyncClient) -> None:
    generation = (await client.post("/api/v1/chat/completions", json=asks("x")["/api/v1/chat/completions"])).json()[
        "id"
    ]
    paths = [
        *("/v1/models", "/v1/models/llama-guard", "/api/v1/models", "/api/v1/models/user", "/api/v1/endpoints/zdr"),
        *("/api/v1/model/openai/llama-guard", "/api/v1/models/llama-guard-server/llama-guard-pocket/endpoints"),
        *(f"/api/v1/generation?id={generation}", "/ready", "/metrics", "/docs", "/openapi.json"),
    ]
    for path in paths:
        response = await client.get(path)
        assert response.status_code == 200, path
        assert "guard-4" not in response.text.lower(), path
    for path, body in asks("a bomb").items():
        assert "guard-4" not in (await client.post(path, json=body)).text.lower(), path


async def test_the_document_has_the_served_name_in_its_examples(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    assert "a stand-in, not a moderator" in document["info"]["description"]
    written = json.dumps(document)
    assert '"model": "llama-guard-pocket"' in written
    assert '"model": "llama-guard-server/llama-guard-pocket"' in written
    assert "{served" not in written


# --- Who judges ------------------------------------------------------------------------------------------


async def test_readiness_and_metrics_say_who_judges(client: httpx.AsyncClient) -> None:
    ready = (await client.get("/ready")).json()
    assert (ready["model"], ready["stand_in"]) == ("llama-guard-pocket", True)
    exposition = (await client.get("/metrics")).text
    told = [line for line in exposition.splitlines() if line.startswith("guard_model_info")]
    assert told == ['guard_model_info{backend="fake",model="llama-guard-pocket",profile="pocket",stand_in="true"} 1.0']


async def test_every_reply_says_who_judged(client: httpx.AsyncClient) -> None:
    for path, body in asks("x").items():
        assert guard_of((await client.post(path, json=body)).json())["model"] == FakeBackend.model, path
    streamed = await client.post("/v1/chat/completions", json={**asks("x")["/v1/chat/completions"], "stream": True})
    assert f'"model":"{FakeBackend.model}"' in streamed.text
    body = {"input_type": "request", "texts": ["x"]}
    (guard,) = (await client.post("/beta/litellm_basic_guardrail_api", json=body)).json()["guard"]
    assert guard["model"] == FakeBackend.model


@pytest.mark.parametrize(("profile", "warned"), [("pocket", True), ("llama-guard-4-12b", False)])
def test_the_start_says_who_judges_and_shouts_about_a_stand_in(
    profile: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    found = load_profile(profile)
    with caplog.at_level(logging.INFO, logger="server"):
        serving._say_who_judges(judges_of(Settings(), found, FakeBackend()))
    assert f"judging by {found.served_as[0]} (profile {found.name}" in caplog.text
    loud = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("a stand-in, not a moderator: do not put it in front of users" in line for line in loud) is warned


# --- Pictures --------------------------------------------------------------------------------------------


async def test_a_picture_is_refused_in_every_dialect(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    for path, body in asks(SEEN).items():
        told = openrouter_error_of if path.startswith("/api/") else error_of
        error = told(await client.post(path, json=body), 400)
        assert "GUARD_UNSEEN_IMAGES=judge_text" in error["message"]
        assert "images_unseen" in (error["code"], error.get("metadata", {}).get("code"))
    response = await client.post(
        "/beta/litellm_basic_guardrail_api", json={"input_type": "request", "texts": ["x"], "images": [picture()]}
    )
    error_of(response, 400, code="images_unseen", param="images[0]")
    earlier = [{"role": "user", "content": [image()]}, {"role": "assistant", "content": "bread"}]
    error_of(await client.post("/v1/chat/completions", json={"messages": earlier}), 400, code="images_unseen")
    assert backend.cases == []


@pytest.mark.parametrize("settings", [JUDGE_TEXT], indirect=True)
async def test_the_text_is_judged_where_the_operator_says_so(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    for path, body in asks(SEEN).items():
        guard = guard_of((await client.post(path, json=body)).json())
        assert (guard["verdict"], guard["images_unseen"]) == ("unsafe", 1), path
    # They go the way of pictures that are seen, to where the model has a place for them.
    assert all(len(case.images) == 1 for case in backend.cases)
    guard = guard_of((await client.post("/v1/moderations", json={"input": "bread"})).json())
    assert guard["images_unseen"] == 0


@pytest.mark.parametrize("settings", [{}, JUDGE_TEXT], indirect=True)
@pytest.mark.parametrize("content", [[image()], [image(), text(" \n")]])
async def test_a_picture_alone_is_never_judged(client: httpx.AsyncClient, backend: FakeBackend, content: Any) -> None:
    for path, body in asks(content).items():
        told = openrouter_error_of if path.startswith("/api/") else error_of
        assert "GUARD_UNSEEN_IMAGES" in told(await client.post(path, json=body), 400)["message"]
    assert backend.cases == []


@pytest.mark.parametrize("settings", [JUDGE_TEXT], indirect=True)
async def test_too_many_pictures_stay_too_many(client: httpx.AsyncClient) -> None:
    for content in ([image()] * 6, [*[image()] * 6, text("x")]):
        error_of(await client.post("/v1/moderations", json={"input": content}), 400, code="too_many_images")


@pytest.mark.parametrize("settings", [{**JUDGE_TEXT, "verdict_cache": 10}], indirect=True)
async def test_a_kept_verdict_tells_of_the_pictures_too(client: httpx.AsyncClient) -> None:
    content = [text("bread"), image(picture("red"))]
    guards = [guard_of((await client.post("/v1/moderations", json={"input": content})).json()) for _ in range(2)]
    assert [(guard["cache"], guard["images_unseen"]) for guard in guards] == [(None, 1), ("hit", 1)]


TEXT_ONLY = "llama-guard-4-12b:text-only"


@pytest.mark.parametrize("unseen", ["refuse", "judge_text"])
async def test_a_variant_without_pictures_has_the_same_choice(backend: FakeBackend, unseen: str) -> None:
    app = create_app(Settings(profile=TEXT_ONLY, unseen_images=unseen), load_profile(TEXT_ONLY), backend)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client,
    ):
        response = await client.post("/v1/moderations", json={"input": SEEN})
        if unseen == "refuse":
            error_of(response, 400, code="images_unseen")
            return
        guard = guard_of(response.json())
        assert (guard["verdict"], guard["images_unseen"], guard["usage"]["images"]) == ("unsafe", 1, 0)
        assert "S14" in guard["category_scores"]
        assert backend.cases[0].conversation.images == ()
        error_of(await client.post("/v1/moderations", json={"input": [image()]}), 400, code="images_unseen")
