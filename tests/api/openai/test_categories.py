"""OpenAI's thirteen categories: a flagged verdict sets one of them, whatever it lists."""

from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.api.openai.categories import CATEGORIES, OpenAICategories
from server.checkpoints.profile import load_profile
from server.domain.policy import Policy
from server.domain.taxonomy import HazardCategory, Taxonomy
from server.domain.verdict import ROUNDING, Completion, Levels, ScoreMethod, Verdict, judge
from tests.api.parts import image, text
from tests.api.shapes import obeys_openai
from tests.fakes import FakeBackend, always
from tests.readings import reading

CODES = tuple(f"S{number}" for number in range(1, 15))
OFFICIAL = load_profile("llama-guard-4-12b").taxonomy
UNMAPPED = "illicit"

OPENAI = st.sampled_from(CATEGORIES)
OWN = st.dictionaries(st.sampled_from(CODES), st.just("Spoilers."), min_size=1).map(Taxonomy.from_mapping)
OF_ANOTHER_GUARD = st.lists(st.sampled_from(CODES), min_size=1, unique=True).flatmap(
    lambda codes: st.tuples(
        *(
            st.builds(
                HazardCategory,
                st.just(code),
                st.just("Harm."),
                openai=st.lists(OPENAI, max_size=2, unique=True).map(tuple),
                openai_with=st.lists(st.tuples(st.sampled_from(CODES), OPENAI), max_size=2).map(tuple),
            )
            for code in codes
        )
    ).map(Taxonomy)
)
TAXONOMIES = st.just(OFFICIAL) | st.just(OFFICIAL.for_images()) | OWN | OF_ANOTHER_GUARD


@st.composite
def verdicts(draw: st.DrawFn) -> Verdict:
    """Every kind: with scores, with bounds, without, listed or bare, by any threshold."""
    taxonomy = draw(TAXONOMIES)
    listed = ",".join(draw(st.lists(st.sampled_from(taxonomy.codes), unique=True)))
    answer = f"unsafe\n{listed}" if listed else "unsafe"
    policy = Policy(taxonomy, draw(st.floats(1e-3, 1)))
    p_unsafe = draw(st.none() | st.floats(0, 1))
    if p_unsafe is None:
        read = reading(draw(st.sampled_from(["safe", answer])), policy)
    else:
        probability = st.floats(1e-3, 1)
        shares = draw(st.none() | st.fixed_dictionaries(dict.fromkeys(taxonomy.codes, probability)))
        levels = Levels(safe=1 - p_unsafe, unsafe=p_unsafe)
        said = answer if levels.unsafe > levels.safe else "safe"
        method = shares and ScoreMethod.WRITTEN_LIST
        read = reading(said, policy, levels, answer, shares=shares, score_method=method)
    return judge(Completion(read, "stop", "a backend", taxonomy), policy)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=500)
@given(verdicts(), st.none() | OPENAI)
def test_whoever_reads_only_the_categories_sees_what_is_flagged(verdict: Verdict, unmapped: str | None) -> None:
    found, mapped = OpenAICategories.of(verdict, unmapped), OpenAICategories.of(verdict, None)
    assert set(found.flags) == set(found.scores) == set(CATEGORIES)
    true = {category for category, flag in found.flags.items() if flag}
    highest = 1.0 if verdict.p_unsafe is None else verdict.p_unsafe
    if not verdict.unsafe:
        assert not true
        assert found == mapped
    elif any(mapped.flags.values()):
        assert found == mapped
    elif unmapped is None:
        assert not true
    else:
        assert true == {unmapped}
        assert found.scores == {**mapped.scores, unmapped: highest}
    assert all(found.scores[category] > 0 for category in true)
    assert all(0 <= score <= highest + ROUNDING for score in found.scores.values())
    if verdict.p_unsafe is None:
        assert found.scores == {category: float(flag) for category, flag in found.flags.items()}


@settings(deadline=None)
@given(st.sets(st.sampled_from(CODES)))
def test_every_list_of_codes_sets_a_category(listed: set[str]) -> None:
    answer = f"unsafe\n{','.join(sorted(listed))}" if listed else "unsafe"
    policy = Policy(OFFICIAL)
    verdict = judge(Completion(reading(answer, policy), "stop", "a backend", OFFICIAL), policy)
    assert any(OpenAICategories.of(verdict, UNMAPPED).flags.values())
    without = any(OpenAICategories.of(verdict, None).flags.values())
    assert without is any(OFFICIAL[code].openai for code in listed)


# --- On the wire -----------------------------------------------------------------------------------------

CAUSES: dict[str, tuple[str, dict[str, Any]]] = {
    "a code that maps to none": ("unsafe\nS7", {}),
    "several such codes": ("unsafe\nS6,S8,S13,S14", {}),
    "no list": ("unsafe", {}),
    "own categories": ("unsafe\nS1", {"policy": {"categories": {"S1": "Spoilers."}}}),
    "what maps is left out": ("unsafe\nS5", {"policy": {"categories": {"S5": "Puns.", "S9": "Jokes."}}}),
}


async def result_of(client: httpx.AsyncClient, body: dict[str, Any]) -> dict[str, Any]:
    response = await client.post("/v1/moderations", json=body)
    assert response.status_code == 200, response.text
    obeys_openai(response.json(), "CreateModerationResponse")
    (result,) = response.json()["results"]
    return result  # type: ignore[no-any-return]


def true_in(result: dict[str, Any]) -> set[str]:
    return {name for name, flag in result["categories"].items() if flag}


@pytest.mark.parametrize(("answer", "fields"), CAUSES.values(), ids=CAUSES)
@pytest.mark.parametrize(
    "settings", [{}, {"unmapped_category": "violence"}, {"unmapped_category": "none"}], indirect=True
)
async def test_a_flagged_text_sets_the_operators_category(
    client: httpx.AsyncClient, backend: FakeBackend, settings: Any, answer: str, fields: dict[str, Any]
) -> None:
    backend.script = always(answer, p_unsafe=0.7)
    result = await result_of(client, {"input": "words", **fields})
    expected = set() if settings.unmapped_category == "none" else {settings.unmapped_category}
    assert result["flagged"] is True
    assert true_in(result) == expected
    assert result["guard"]["categories"] == (answer.partition("\n")[2].split(",") if "\n" in answer else [])
    assert {name for name, kinds in result["category_applied_input_types"].items() if kinds} == expected
    for category in expected:
        assert result["category_scores"][category] == pytest.approx(0.7)


async def test_without_probabilities_its_score_is_one(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    backend.script = always("unsafe\nS7", levels=None, shares=None, score_method=None)
    result = await result_of(client, {"input": "words"})
    assert {name: score for name, score in result["category_scores"].items() if score} == {"illicit": 1.0}


@pytest.mark.parametrize(
    ("settings", "kinds"), [({}, []), ({"unmapped_category": "violence"}, ["image"])], indirect=["settings"]
)
async def test_a_picture_alone_counts_for_a_category_only_where_openai_lets_it(
    client: httpx.AsyncClient, backend: FakeBackend, settings: Any, kinds: list[str]
) -> None:
    backend.script = always("unsafe\nS7")
    result = await result_of(client, {"input": [image()]})
    assert true_in(result) == {settings.unmapped_category}
    assert result["category_applied_input_types"][settings.unmapped_category] == kinds
    both = await result_of(client, {"input": [text("words"), image()]})
    assert both["category_applied_input_types"][settings.unmapped_category] == ["text", *kinds]


async def test_the_llama_apis_dialect_names_the_models_own_categories(
    client: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.script = always("unsafe\nS7")
    body = {"messages": [{"role": "user", "content": "words"}]}
    (result,) = (await client.post("/v1/moderations", json=body)).json()["results"]
    assert result["flagged_categories"] == ["privacy"]
