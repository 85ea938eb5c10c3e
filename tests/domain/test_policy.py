"""One request may narrow the operator's policy, within what a prompt can hold."""

import math
from dataclasses import FrozenInstanceError

import pytest

from server.checkpoints.profile import load_profile
from server.domain.errors import InvalidRequest
from server.domain.policy import MAX_OWN_CATEGORY_CHARACTERS, Policy
from server.domain.taxonomy import HazardCategory, Taxonomy
from tests.readings import FAMILY

TAXONOMY = load_profile("llama-guard-4-12b").taxonomy
POLICY = Policy(TAXONOMY, threshold=0.4, own_codes=FAMILY.own_codes)


def test_nothing_asked_changes_nothing():
    assert POLICY.narrowed() == POLICY


def test_policies_are_values():
    narrowed = POLICY.narrowed(excluded=["S1"], threshold=0.9)
    assert (POLICY.threshold, len(POLICY.taxonomy.codes)) == (0.4, 14)
    assert narrowed != POLICY
    with pytest.raises(FrozenInstanceError):
        narrowed.threshold = 0.1  # type: ignore[misc]


# --- Thresholds -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [1e-9, 0.1, 0.5, 1.0])
def test_threshold_of_the_request(threshold):
    assert POLICY.narrowed(threshold=threshold).threshold == threshold


@pytest.mark.parametrize("threshold", [0.0, -0.0, -0.1, 1.0000001, 2, math.inf, -math.inf, math.nan])
def test_threshold_that_decides_nothing(threshold):
    """Zero would flag everything; NaN compares as false and would call everything safe."""
    with pytest.raises(InvalidRequest) as caught:
        POLICY.narrowed(threshold=threshold)
    assert caught.value.param == "policy.threshold"


# --- Excluded categories ----------------------------------------------------------------------------------


def test_excluded_categories_are_left_out_in_order():
    narrowed = POLICY.narrowed(excluded=["S13", "S2", "S13"])
    assert narrowed.taxonomy.codes == tuple(code for code in TAXONOMY.codes if code not in ("S2", "S13"))
    assert narrowed.threshold == 0.4
    assert not narrowed.taxonomy.own


@pytest.mark.parametrize("code", ["S15", "S0", "s1", "1", "", "S1 ", "S1\n", "Violent Crimes.", "S1,S2"])
def test_unknown_code_cannot_be_excluded(code):
    """A misspelt code would otherwise leave its category in, in silence."""
    with pytest.raises(InvalidRequest) as caught:
        POLICY.narrowed(excluded=["S2", code])
    assert caught.value.param == "policy.excluded_categories"


def test_refusal_names_what_could_be_excluded_and_repeats_nothing():
    with pytest.raises(InvalidRequest) as caught:
        POLICY.narrowed(excluded=["canary"])
    codes = ", ".join(TAXONOMY.codes)
    assert caught.value.message == f"An excluded category is not in the policy. Its categories are {codes}."


def test_a_request_cannot_bring_back_what_the_operator_excluded():
    operators = POLICY.narrowed(excluded=["S5"])
    assert "S5" not in operators.narrowed(excluded=["S1"]).taxonomy.codes


def test_excluded_may_be_read_once_only():
    assert "S1" not in POLICY.narrowed(excluded=iter(["S1"])).taxonomy.codes


@pytest.mark.parametrize(
    "options",
    [{"excluded": TAXONOMY.codes}, {"categories": {}}, {"categories": {"S1": "One."}, "excluded": ["S1"]}],
    ids=["all excluded", "no own category", "the only own category excluded"],
)
def test_some_category_must_be_left(options):
    with pytest.raises(InvalidRequest) as caught:
        POLICY.narrowed(**options)
    assert caught.value.param == "policy"


# --- Own categories ---------------------------------------------------------------------------------------


def test_own_categories_replace_all_others():
    narrowed = POLICY.narrowed(categories={"S14": "Plot twists.", "S2": "Off topic."})
    assert [(category.code, category.prompt_name) for category in narrowed.taxonomy.categories] == [
        ("S14", "Plot twists."),
        ("S2", "Off topic."),
    ]


def test_own_categories_mean_nothing_to_openai_and_stay_with_images():
    taxonomy = POLICY.narrowed(categories={"S14": "Plot twists.", "S1": "Spoilers."}).taxonomy
    assert all((category.openai, category.openai_with) == ((), ()) for category in taxonomy.categories)
    assert taxonomy.for_images() == taxonomy


def test_own_categories_may_be_excluded():
    narrowed = POLICY.narrowed(categories={"S1": "One.", "S2": "Two."}, excluded=["S1"])
    assert narrowed.taxonomy.codes == ("S2",)
    assert narrowed.taxonomy.own


def test_exclusion_is_of_the_own_categories():
    with pytest.raises(InvalidRequest) as caught:
        POLICY.narrowed(categories={"S1": "One."}, excluded=["S2"])
    assert caught.value.param == "policy.excluded_categories"


BAD_CODES = ["S0", "S15", "S01", "s1", "1", "S", "", "S1 ", " S1", "S1\n", "S1\nS2", "S١", "T1", "S100", "S1,S2"]


@pytest.mark.parametrize("code", BAD_CODES, ids=ascii)
def test_own_code_that_the_model_cannot_answer(code):
    with pytest.raises(InvalidRequest) as caught:
        POLICY.narrowed(categories={"S1": "One.", code: "Two."})
    assert caught.value.param == "policy.categories"


@pytest.mark.parametrize("code", TAXONOMY.codes)
def test_own_code_that_the_model_can_answer(code):
    assert POLICY.narrowed(categories={code: "One."}).taxonomy.codes == (code,)


@pytest.mark.parametrize("words", ["", " ", "\n\t\u3000", "x" * (MAX_OWN_CATEGORY_CHARACTERS + 1)], ids=len)
def test_own_words_that_say_nothing_or_too_much(words):
    with pytest.raises(InvalidRequest) as caught:
        POLICY.narrowed(categories={"S1": words})
    assert caught.value.param == "policy.categories"


def test_own_words_at_the_limit():
    words = "x" * MAX_OWN_CATEGORY_CHARACTERS
    assert POLICY.narrowed(categories={"S1": words}).taxonomy["S1"].prompt_name == words


# --- The taxonomy that policies hold ----------------------------------------------------------------------


def test_categories_are_found_by_code():
    assert TAXONOMY["S10"].prompt_name == "Hate."
    with pytest.raises(KeyError):
        TAXONOMY["S15"]


def test_text_only_categories_are_left_out_for_images():
    taxonomy = Taxonomy((HazardCategory("S1", "One."), HazardCategory("S2", "Two.", text_only=True)))
    assert taxonomy.for_images().codes == ("S1",)
    assert TAXONOMY.for_images().codes == TAXONOMY.codes[:-1]
