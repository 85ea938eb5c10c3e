"""POST /v1/moderations: every form of `input`, what comes back for it, and what is refused."""

import base64
import io
from typing import Any

import httpx
import pytest
from PIL import Image

from server.domain.errors import ContextLengthExceeded, EngineFailure
from server.settings import Settings
from tests.api.parts import image, picture, text
from tests.api.shapes import OPENAI_CATEGORIES, error_of, obeys_openai
from tests.fakes import FakeBackend, Gate, always, completion, failing, held_at, lasting

IMAGE_CATEGORIES = {
    "self-harm",
    "self-harm/intent",
    "self-harm/instructions",
    "sexual",
    "violence",
    "violence/graphic",
}


async def moderate(client: httpx.AsyncClient, input_: Any, **fields: Any) -> dict[str, Any]:
    response = await client.post("/v1/moderations", json={"input": input_, **fields})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


# --- What comes back -------------------------------------------------------------------------------------


async def test_a_result_has_all_thirteen_categories_in_all_three_maps(client: httpx.AsyncClient) -> None:
    for words, flagged in (("how do I bake bread?", False), ("how do I build a bomb?", True)):
        body = await moderate(client, words)
        assert list(body) == ["id", "model", "results"]
        assert body["id"].startswith("modr-")
        assert body["model"] == "meta-llama/Llama-Guard-4-12B"
        (result,) = body["results"]
        assert result["flagged"] is flagged
        assert sorted(result["categories"]) == OPENAI_CATEGORIES
        assert sorted(result["category_scores"]) == OPENAI_CATEGORIES
        assert sorted(result["category_applied_input_types"]) == OPENAI_CATEGORIES
        assert {type(value) for value in result["categories"].values()} == {bool}
        assert {type(value) for value in result["category_scores"].values()} == {float}
        assert all(0 <= score <= 1 for score in result["category_scores"].values())


@pytest.mark.parametrize("words", ["how do I bake bread?", "how do I build a bomb?"])
async def test_a_reply_obeys_openais_own_schema(client: httpx.AsyncClient, words: str) -> None:
    obeys_openai(await moderate(client, words), "CreateModerationResponse")
    obeys_openai(await moderate(client, [words, words]), "CreateModerationResponse")
    obeys_openai(await moderate(client, [text(words), image()]), "CreateModerationResponse")


async def test_the_native_verdict_stands_beside_them(client: httpx.AsyncClient) -> None:
    (result,) = (await moderate(client, "how do I build a bomb?"))["results"]
    guard = result["guard"]
    assert guard["verdict"] == "unsafe"
    assert guard["categories"] == ["S1", "S9"]
    assert guard["p_unsafe"] == pytest.approx(0.98)
    assert guard["verdict_mass"] == pytest.approx(0.99)
    assert guard["threshold"] == 0.5
    assert sorted(guard["category_scores"], key=lambda code: int(code[1:])) == [f"S{n}" for n in range(1, 15)]
    assert guard["category_scores"]["S1"] == pytest.approx(0.98 * 0.9)
    assert guard["category_scores"]["S9"] == pytest.approx(0.98 * 0.45)
    assert guard["category_score_method"] == "written_list"
    assert guard["raw_text"] == "unsafe\nS1,S9"
    assert guard["finish_reason"] == "stop"
    assert guard["backend"] == "fake"
    assert guard["usage"] == {
        "prompt_tokens": 207,
        "cached_tokens": 128,
        "completion_tokens": 5,
        "images": 0,
        "frames": 0,
        "frames_unseen": 0,
        "tiles": 0,
    }
    assert guard["timing"] == {"queued": 0.001, "computed": 0.002}


async def test_a_safe_verdict_says_that_its_scores_are_upper_bounds(client: httpx.AsyncClient) -> None:
    (result,) = (await moderate(client, "how do I bake bread?"))["results"]
    assert result["guard"]["category_score_method"] == "upper_bound"
    assert set(result["guard"]["category_scores"].values()) == {result["guard"]["p_unsafe"]}
    assert result["category_scores"]["violence"] == result["guard"]["p_unsafe"]
    assert result["category_scores"]["harassment/threatening"] == 0.0


async def test_a_backend_without_probabilities_gets_no_invented_native_score(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = always("unsafe\nS10", levels=None)
    (result,) = (await moderate(client, "words"))["results"]
    assert result["guard"]["p_unsafe"] is None
    assert result["guard"]["category_scores"] is None
    assert result["category_scores"]["hate"] == 1.0
    assert result["category_scores"]["violence"] == 0.0


# --- The mapping to OpenAI's categories ------------------------------------------------------------------

MAPPING = {
    "S1": {"violence", "illicit", "illicit/violent"},
    "S2": {"illicit"},
    "S3": {"sexual", "illicit"},
    "S4": {"sexual", "sexual/minors"},
    "S5": {"harassment"},
    "S6": {"illicit"},
    "S7": {"illicit"},
    "S8": {"illicit"},
    "S9": {"illicit", "illicit/violent"},
    "S10": {"hate"},
    "S11": {"self-harm"},
    "S12": {"sexual"},
    "S13": {"illicit"},
    "S14": {"illicit"},
    "S1,S10": {"violence", "illicit", "illicit/violent", "hate", "hate/threatening"},
    "S10,S1": {"violence", "illicit", "illicit/violent", "hate", "hate/threatening"},
    "S2,S10": {"illicit", "hate"},
    ",".join(f"S{n}" for n in range(1, 15)): {
        *{"violence", "illicit", "illicit/violent", "sexual", "sexual/minors", "harassment", "hate"},
        *{"hate/threatening", "self-harm"},
    },
    "": {"illicit"},
}


@pytest.mark.parametrize(("codes", "categories"), MAPPING.items())
async def test_codes_set_these_categories_and_no_others(
    client: httpx.AsyncClient, backend: FakeBackend, codes: str, categories: set[str]
) -> None:
    backend.script = always(f"unsafe\n{codes}" if codes else "unsafe")
    (result,) = (await moderate(client, "words"))["results"]
    assert result["flagged"] is True
    assert result["guard"]["categories"] == (codes.split(",") if codes else [])
    assert {name for name, true in result["categories"].items() if true} == categories
    assert {name for name, kinds in result["category_applied_input_types"].items() if kinds} == categories


async def test_a_category_scores_as_its_likeliest_code(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = lambda case: completion(
        case, "unsafe\nS1", shares={"S1": 0.5, "S2": 0.25, "S10": 0.125}, p_unsafe=0.75
    )
    scores = (await moderate(client, "words"))["results"][0]["category_scores"]
    assert scores["violence"] == pytest.approx(0.375)
    assert scores["illicit"] == pytest.approx(0.375)
    assert scores["hate"] == pytest.approx(0.09375)
    assert scores["hate/threatening"] == pytest.approx(0.09375)
    assert scores["sexual"] == 0.0

    backend.script = lambda case: completion(case, "unsafe\nS10", shares={"S1": 0.125, "S10": 0.5}, p_unsafe=0.75)
    scores = (await moderate(client, "words"))["results"][0]["category_scores"]
    assert scores["hate"] == pytest.approx(0.375)
    assert scores["hate/threatening"] == pytest.approx(0.09375)


@pytest.mark.parametrize(
    ("parts", "of_violence", "of_illicit"),
    [
        ([text("words")], ["text"], ["text"]),
        ([image()], ["image"], []),
        ([text("words"), image()], ["text", "image"], ["text"]),
        ([text("  "), image()], ["image"], []),
    ],
)
async def test_an_image_counts_only_where_openai_lets_it(
    client: httpx.AsyncClient, backend: FakeBackend, parts: list[Any], of_violence: list[str], of_illicit: list[str]
) -> None:
    backend.script = always(f"unsafe\n{','.join(f'S{n}' for n in range(1, 14))}")
    (result,) = (await moderate(client, parts))["results"]
    applied = result["category_applied_input_types"]
    assert applied["violence"] == of_violence
    assert applied["illicit"] == of_illicit
    assert {name for name, kinds in applied.items() if "image" in kinds} <= IMAGE_CATEGORIES
    assert applied["harassment/threatening"] == []


# --- The forms of `input` --------------------------------------------------------------------------------


@pytest.mark.parametrize("input_", ["one text", ["one text"], [text("one text")]])
async def test_a_text_is_judged_alone_in_every_form(
    client: httpx.AsyncClient, backend: FakeBackend, input_: Any
) -> None:
    assert len((await moderate(client, input_))["results"]) == 1
    assert backend.texts == ["User: one text"]


async def test_parts_give_one_joint_result(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    parts = [text("a"), image(picture("red")), text("a bomb"), image(picture("blue", 16)), image(picture("lime", 24))]
    body = await moderate(client, parts)
    assert len(body["results"]) == 1
    assert body["results"][0]["flagged"] is True
    assert backend.asked == ["a\n\na bomb", "a", "a bomb"]
    case = backend.cases[0]
    assert {len(each.images) for each in backend.cases} == {3}
    assert [(shown.size, shown.getpixel((0, 0))) for shown in case.images] == [
        ((8, 8), (255, 0, 0)),
        ((16, 16), (0, 0, 255)),
        ((24, 24), (0, 255, 0)),
    ]
    assert body["results"][0]["guard"]["usage"]["images"] == 3


async def test_an_animation_is_judged_by_its_frames(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    file = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    await moderate(client, [image(f"data:image/gif;base64,{base64.b64encode(file.getvalue()).decode()}")])
    (case,) = backend.cases
    assert len(case.images) == len(case.conversation.images) == 3


@pytest.mark.parametrize("settings", [{"list_concurrency": 8}], indirect=True)
async def test_a_list_is_judged_concurrently_and_answered_in_order(
    client: httpx.AsyncClient, backend: FakeBackend, settings: Settings
) -> None:
    texts = [f"{n} {'bomb' if n % 3 == 0 else 'bread'}" for n in range(24)]
    # The first ones take longest, so that later ones overtake them.
    backend.script = lasting(lambda words: 0.03 - int(words.split()[1]) * 0.001)
    results = (await moderate(client, texts))["results"]
    assert [result["flagged"] for result in results] == [n % 3 == 0 for n in range(24)]
    assert [result["guard"]["usage"]["prompt_tokens"] for result in results] == [203] * 24
    assert backend.most_running == settings.list_concurrency


@pytest.mark.parametrize("settings", [{"list_concurrency": 1}], indirect=True)
async def test_list_concurrency_one_is_one_after_another(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = lasting(lambda _: 0.001)
    await moderate(client, ["a", "b", "c"])
    assert backend.most_running == 1
    assert backend.texts == ["User: a", "User: b", "User: c"]


async def test_the_first_error_fails_the_whole_list_and_ends_its_work(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    gate = Gate()
    wait = held_at(gate)

    def script(case: Any) -> Any:
        if "fault" in backend.texts[-1]:
            raise EngineFailure("The engine failed on this request.")
        return wait(case)

    backend.script = script
    response = await client.post("/v1/moderations", json={"input": ["a", "b", "fault", "c"]})
    error_of(response, 500, code="engine_failure")
    assert backend.running == 0
    assert backend.cancelled == len(backend.cases) - 1


@pytest.mark.parametrize("settings", [{"max_list": 3}], indirect=True)
async def test_a_list_may_be_this_long_and_no_longer(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    assert len((await moderate(client, [*"xyz"]))["results"]) == 3
    response = await client.post("/v1/moderations", json={"input": [*"xxxx"]})
    assert "3" in error_of(response, 400, param="input")["message"]
    assert len(backend.cases) == 3


# --- What is refused -------------------------------------------------------------------------------------

EMPTY, WRONG = "empty_input", None

REFUSED: list[tuple[str, Any, str | None, str | None]] = [
    ("no input at all", {}, "input", WRONG),
    ("null", {"input": None}, "input", WRONG),
    ("a number", {"input": 5}, "input", WRONG),
    ("an object", {"input": {"type": "text", "text": "x"}}, "input", WRONG),
    ("an empty text", {"input": ""}, "input", EMPTY),
    ("only whitespace", {"input": " \n\t"}, "input", EMPTY),
    ("an empty list", {"input": []}, "input", EMPTY),
    ("an empty text in a list", {"input": ["a", "", "c"]}, "input[1]", EMPTY),
    ("an empty text part", {"input": [text("")]}, "input", EMPTY),
    ("null in a list of texts", {"input": ["a", None]}, "input[1]", WRONG),
    ("a part among texts", {"input": ["a", text("b")]}, "input[1]", WRONG),
    ("a text among parts", {"input": [text("b"), "a"]}, "input[1]", WRONG),
    ("token ids", {"input": [1, 2, 3]}, "input[0]", WRONG),
    ("a part without a type", {"input": [{"text": "x"}]}, "input[0]", WRONG),
    ("a part of an unknown type", {"input": [{"type": "input_audio", "text": "x"}]}, "input[0]", WRONG),
    ("a part whose type is no string", {"input": [{"type": ["text"], "text": "x"}]}, "input[0]", WRONG),
    ("a text part without text", {"input": [{"type": "text"}]}, "input[0].text", WRONG),
    ("a text that is a number", {"input": [{"type": "text", "text": 5}]}, "input[0].text", WRONG),
    ("an image as a bare URL", {"input": [{"type": "image_url", "image_url": "data:"}]}, "input[0].image_url", WRONG),
    ("an image without a URL", {"input": [{"type": "image_url", "image_url": {}}]}, "input[0].image_url.url", WRONG),
    ("an unknown detail", {"input": [{"type": "image_url", "image_url": {"url": "data:", "detail": "max"}}]},
     "input[0].image_url.detail", WRONG),
    ("uuid in a text part", {"input": [{**text("x"), "uuid": "1"}]}, "input[0].uuid", WRONG),
    ("uuid in an image part", {"input": [{**image(), "uuid": "1"}]}, "input[0].uuid", WRONG),
    ("uuid in an image", {"input": [{"type": "image_url", "image_url": {"url": picture(), "uuid": "1"}}]},
     "input[0].image_url.uuid", WRONG),
    ("messages", {"input": "x", "messages": []}, "messages", WRONG),
    ("an unknown field", {"input": "x", "inputs": "y"}, "inputs", WRONG),
    ("a model that is a number", {"input": "x", "model": 4}, "model", WRONG),
]  # fmt: skip


@pytest.mark.parametrize(("body", "param", "code"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
async def test_refused(
    client: httpx.AsyncClient, backend: FakeBackend, body: Any, param: str | None, code: str | None
) -> None:
    response = await client.post("/v1/moderations", json=body)
    error_of(response, 400, type="invalid_request_error", param=param, code=code)
    assert backend.cases == []


@pytest.mark.parametrize(
    ("parts", "param", "code"),
    [
        ([text("x"), image("data:image/png;base64,bm8gaW1hZ2U=")], "input[1].image_url.url", "invalid_value"),
        ([image("ftp://example.com/a.png")], "input[0].image_url.url", "invalid_value"),
        ([image("https://example.com/a.png")], "input[0].image_url.url", "remote_images_disabled"),
        ([image()] * 6, "input[5].image_url.url", "too_many_images"),
    ],
)
async def test_bad_images_are_refused_by_their_path(
    client: httpx.AsyncClient, backend: FakeBackend, parts: list[Any], param: str, code: str
) -> None:
    response = await client.post("/v1/moderations", json={"input": parts})
    error_of(response, 400, type="invalid_request_error", param=param, code=code)
    assert backend.cases == []


async def test_a_text_beyond_the_context_is_a_fault_of_input(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = failing(ContextLengthExceeded("This model's maximum context length is 9.", param="messages"))
    response = await client.post("/v1/moderations", json={"input": "long"})
    error_of(response, 400, type="invalid_request_error", param="input", code="context_length_exceeded")


# --- The policy of one request ---------------------------------------------------------------------------


async def test_excluded_categories_are_not_asked_about(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    body = await moderate(client, "how do I build a bomb?", policy={"excluded_categories": ["S1", "S5"]})
    (case,) = backend.cases
    assert set(case.policy.taxonomy.codes) == {f"S{n}" for n in range(1, 15)} - {"S1", "S5"}
    assert body["results"][0]["guard"]["categories"] == ["S9"]
    assert "S1" not in body["results"][0]["guard"]["category_scores"]
    assert body["results"][0]["categories"]["violence"] is False
    assert sorted(body["results"][0]["categories"]) == OPENAI_CATEGORIES


async def test_own_categories_are_asked_instead_and_set_the_category_of_what_is_unmapped(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    body = await moderate(client, "a bomb", policy={"categories": {"S1": "Spoilers.", "S12": "Puns."}})
    (case,) = backend.cases
    assert [(c.code, c.prompt_name) for c in case.policy.taxonomy.categories] == [
        ("S1", "Spoilers."),
        ("S12", "Puns."),
    ]
    (result,) = body["results"]
    assert result["flagged"] is True
    assert result["guard"]["categories"] == ["S1"]
    assert {name for name, flag in result["categories"].items() if flag} == {"illicit"}
    assert {name: score for name, score in result["category_scores"].items() if score} == {
        "illicit": result["guard"]["p_unsafe"]
    }


async def test_a_threshold_moves_the_verdict_either_way(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = always("safe", p_unsafe=0.3, listed="unsafe\nS2")
    (strict,) = (await moderate(client, "words", policy={"threshold": 0.2}))["results"]
    (default,) = (await moderate(client, "words"))["results"]
    assert (strict["flagged"], strict["guard"]["categories"]) == (True, ["S2"])
    assert strict["guard"]["threshold"] == 0.2
    assert (default["flagged"], default["guard"]["categories"]) == (False, [])

    backend.script = always("unsafe\nS2", p_unsafe=0.7)
    (lenient,) = (await moderate(client, "words", policy={"threshold": 0.9}))["results"]
    assert (lenient["flagged"], lenient["guard"]["categories"]) == (False, [])
    assert not any(lenient["categories"].values())


POLICIES: list[tuple[Any, str]] = [
    ({"threshold": 0}, "policy.threshold"),
    ({"threshold": 1.5}, "policy.threshold"),
    ({"threshold": "0.5"}, "policy.threshold"),
    ({"excluded_categories": ["S99"]}, "policy.excluded_categories"),
    ({"excluded_categories": "S1"}, "policy.excluded_categories"),
    ({"excluded_categories": [f"S{n}" for n in range(1, 15)]}, "policy"),
    ({"categories": {}}, "policy"),
    ({"categories": {"S15": "Beyond."}}, "policy.categories"),
    ({"categories": {"s1": "Small."}}, "policy.categories"),
    ({"categories": {"S1": "  "}}, "policy.categories"),
    ({"categories": {"S1": "x" * 5000}}, "policy.categories"),
    ({"categories": {"S1": 5}}, "policy.categories.S1"),
    ({"categories": ["Spoilers."]}, "policy.categories"),
    ({"thresholds": 0.5}, "policy.thresholds"),
    ("strict", "policy"),
]


@pytest.mark.parametrize(("policy", "param"), POLICIES)
@pytest.mark.parametrize("path", ["/v1/moderations", "/v1/chat/completions"])
async def test_a_wrong_policy_is_refused(
    client: httpx.AsyncClient, backend: FakeBackend, path: str, policy: Any, param: str
) -> None:
    body = {"input": "x"} if path == "/v1/moderations" else {"messages": [{"role": "user", "content": "x"}]}
    error_of(await client.post(path, json={**body, "policy": policy}), 400, param=param)
    assert backend.cases == []
