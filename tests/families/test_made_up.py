"""A family is one folder: a made-up one judges through the same server, and nothing else had to change."""

from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.app import create_app
from server.backends.base import Case
from server.checkpoints.profile import load_profile
from server.domain.conversation import Conversation, ImagePart, Message, TextPart
from server.domain.errors import InvalidRequest, OperatorError, UnparseableVerdict
from server.domain.policy import Policy
from server.domain.taxonomy import HazardCategory, Taxonomy
from server.domain.verdict import Completion
from server.families.base import Answer, Ask, family_named
from server.settings import Settings
from tests.fakes import FakeBackend
from tests.families.drive import answer_of, control_id, drive, verdict_of
from tests.golden.vocabulary import vocabulary

NAME = "tests.families.made_up.traffic_light"
FAMILY = family_named(NAME)
TOKENIZER = vocabulary("llama 4").ours
END = control_id(TOKENIZER, "<|eot|>")
ASKER = FAMILY.asker(TOKENIZER, [END])
TAXONOMY = Taxonomy((HazardCategory("Fire", "Fire"), HazardCategory("Flood", "Flood")))
POLICY = Policy(TAXONOMY)
ASKED = Conversation.from_messages(
    [Message("user", (TextPart("Is it hot?"),)), Message("assistant", (TextPart("It burns."),))]
)


def engine(green: float, amber: float, red: float, listed: str = " Fire, Flood"):
    def script(ask: Ask) -> Answer:
        if ask.begun:
            return answer_of(TOKENIZER, listed, end=END)
        return answer_of(TOKENIZER, " Green", {" Green": green, " Amber": amber, " Red": red})

    return script


@pytest.mark.parametrize(
    ("probabilities", "threshold", "unsafe", "categories"),
    [
        ((0.9, 0.05, 0.04), 0.5, False, ()),
        ((0.2, 0.7, 0.09), 0.5, True, ("Fire", "Flood")),
        ((0.1, 0.2, 0.69), 0.5, True, ("Fire", "Flood")),
        ((0.2, 0.7, 0.09), 0.9, False, ()),
        ((0.9, 0.05, 0.04), 0.05, True, ("Fire", "Flood")),
    ],
)
def test_three_levels_and_two_asks_make_one_verdict(probabilities, threshold, unsafe, categories):
    policy = replace(POLICY, threshold=threshold)
    reading, asks = drive(ASKER.steps(ASKED, policy), engine(*probabilities))
    verdict = verdict_of(reading, asks, policy)
    assert (verdict.unsafe, verdict.categories, len(asks)) == (unsafe, categories, 2)
    assert verdict.p_unsafe == pytest.approx(sum(probabilities[1:]) / sum(probabilities))
    assert asks[0].prompt.text == "Which light? Fire, Flood\n[user says] Is it hot?[model says] It burns.\nLight:"


def test_the_contract_holds_for_every_family():
    with pytest.raises(UnparseableVerdict, match="neither clearly"):
        drive(ASKER.steps(ASKED, POLICY), engine(0.3, 0.3, 0.1))
    reading, asks = drive(ASKER.steps(ASKED, POLICY), engine(0.01, 0.01, 0.97, listed=" Snow"))
    with pytest.raises(UnparseableVerdict, match="not asked about"):
        verdict_of(reading, asks, POLICY)
    with pytest.raises(InvalidRequest, match="text only"):
        next(ASKER.steps(Conversation.from_user(ImagePart("data:")), POLICY))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The profile of a model of this family: what an operator writes."""
    (tmp_path / "taxonomy.toml").write_text(
        "".join(f'[[category]]\ncode = "{name}"\nprompt_name = ""\nname = "{name}"\nslug = "{name.lower()}"\n'
                for name in TAXONOMY.codes)
    )  # fmt: skip
    (tmp_path / "profile.toml").write_text(
        f'name = "lights"\nmodel = "."\nserved_as = ["lights"]\nfamily = "{NAME}"\nruns_on_cpu = true\nimages = false\n'
        'context_tokens = 2048\ntaxonomy = "taxonomy.toml"\n'
        "[tokens]\nvocabulary_size = 10\n"
    )
    return tmp_path


@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_pictures_keep_to_the_bounds_of_a_family_that_says_nothing_of_them(width: int, height: int):
    shown = FAMILY.pictures.shrunk(width, height)
    assert shown[0] * shown[1] <= FAMILY.pictures.most_pixels + max(shown)
    assert 1 <= min(shown) <= max(shown) <= FAMILY.pictures.longest_side
    assert shown == (width, height) or max(shown) < max(width, height)


async def test_its_verdicts_go_out_through_every_door(folder: Path):
    profile = load_profile(f"{folder}/")

    def script(case: Case) -> Completion:
        reading, asks = drive(ASKER.steps(case.conversation, case.policy), engine(0.01, 0.01, 0.97))
        return Completion(reading, "stop", "fake", asks[0].prompt.taxonomy, model="lights")

    app = create_app(Settings(database_url="sqlite:///:memory:"), profile, FakeBackend(script))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client,
    ):
        moderation = (await client.post("/v1/moderations", json={"input": "Is it hot?"})).json()
        assert moderation["results"][0]["guard"]["categories"] == ["Fire", "Flood"]
        said = {"messages": [{"role": "user", "content": "Is it hot?"}]}
        chat = (await client.post("/v1/chat/completions", json=said)).json()
        assert chat["choices"][0]["message"]["content"] == "unsafe\nFire,Flood"
        guarded = {"input_type": "request", "texts": ["Is it hot?"]}
        litellm = (await client.post("/beta/litellm_basic_guardrail_api", json=guarded)).json()
        assert litellm["blocked_reason"] == "Unsafe content: Fire, Flood."
        llama = (await client.post("/v1/moderations", json=said)).json()
        assert llama["results"][0]["flagged_categories"] == ["fire", "flood"]
        response = (await client.post("/v1/responses", json={"input": "Is it hot?"})).json()
        assert response["output_text"] == "unsafe\nFire,Flood"
        own = await client.post("/v1/moderations", json={"input": "x", "policy": {"categories": {"S1": "Spoilers."}}})
        assert (own.status_code, own.json()["error"]["param"]) == (400, "policy.categories")
        left = await client.post("/v1/moderations", json={"input": "x", "policy": {"excluded_categories": ["Flood"]}})
        assert left.status_code == 500, "the scripted model lists what it was not asked about"
        assert left.json()["error"]["code"] == "unparseable_verdict"


@pytest.mark.parametrize("name", ["no_such_family", "tests.families.no_such_family", "tests.families.drive"])
def test_what_is_no_family_stops_the_start(name: str):
    with pytest.raises(OperatorError, match=r"docs/models\.md"):
        family_named(name)


def test_it_takes_under_a_hundred_lines():
    source = Path(__file__).parent / "made_up" / "traffic_light.py"
    assert len(source.read_text(encoding="utf-8").splitlines()) < 100
