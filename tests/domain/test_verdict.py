"""No verdict without proof: what is not exactly an answer raises, and is never called safe."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from server.checkpoints.profile import load_profile
from server.domain.errors import EngineFailure, UnparseableVerdict
from server.domain.policy import Policy
from server.domain.taxonomy import Taxonomy
from server.domain.verdict import Completion, Levels, ScoreMethod, Verdict, check_finished, judge, strictest
from tests.readings import reading, text_of

TAXONOMY = load_profile("llama-guard-4-12b").taxonomy
POLICY = Policy(TAXONOMY)
MINIMUM_MASS = 0.9
CLEARLY_SAFE = Levels(safe=0.97, unsafe=0.02)
CLEARLY_UNSAFE = Levels(safe=0.03, unsafe=0.96)
EVEN = Levels(safe=0.5, unsafe=0.5)

# A busy machine is no reason to fail.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


OF_THE_READING = ("listed", "shares", "score_method", "no_scores", "tokens")


def completion(text: str, words: Levels | None = None, policy: Policy = POLICY, **fields: Any) -> Completion:
    read = {name: fields.pop(name) for name in OF_THE_READING if name in fields}
    fields = {"finish_reason": "stop", "backend": "scripted", "taxonomy": TAXONOMY, **fields}
    check_finished(fields["finish_reason"])  # before anything is read, as backends do
    return Completion(reading(text, policy, words, **read), **fields)


def judged(
    text: str, words: Levels | None = None, *, threshold: float = 0.5, taxonomy: Any = TAXONOMY, **more: Any
) -> Verdict:
    """The verdict on an answer: a policy of `taxonomy` and `threshold`, and the other fields of the completion."""
    policy = Policy(taxonomy, threshold)
    return judge(completion(text, words, policy, taxonomy=taxonomy, **more), policy)


# --- Answers that are none --------------------------------------------------------------------------------

NOT_FINISHED = [None, "", "error", "abort", "length", "repetition", "Stop", "STOP", "stop ", "stopped", "tool_calls"]

NOT_SAFE = [
    *("", " ", "\n", "\n\n", "\x00", "\ufeff"),
    *("Safe", "SAFE", "sAFE", "safe ", " safe", "\nsafe", "\n\nsafe", "safe\n", "safe\n\n", "safe\r\n", "safe\t"),
    *("safe.", "safe!", "'safe'", '"safe"', "`safe`", "**safe**", "safe,", "safe\x00", "\x00safe", "safe\x0b"),
    *("safe\u2028", "safe\u0085", "safe\u00a0", "safe\u200b", "\u200bsafe", "\ufeffsafe"),
    *("sаfe", "ѕafe", "ｓafe", "ｓａｆｅ", "ſafe", "𝐬𝐚𝐟𝐞", "sa\u00adfe", "safé", "şafe"),
    *("safe\nS1", "safe\nS1,S2", "safe S1", "safe\n\nS1", "safe,S1", "safeS1", "safe\nunsafe", "safe safe", "safesafe"),
    *("saf", "afe", "s", "safer", "safely", "unsafesafe", "safe unsafe", "not safe", "Not safe.", "un safe", "un-safe"),
    *("I'm sorry, but I can't help with that.", "The message is safe", "yes", "no", "0", "S1", "S1,S2", "null"),
    *("<|eot|>", "safe<|eot|>", '{"verdict": "safe"}', "First line: safe", "User: safe", "sicher"),
]

NOT_UNSAFE = [
    *("Unsafe", "UNSAFE", "unsafe ", " unsafe", "unsafe\n", "unsafe\n\n", "unsafe\r\nS1", "unsafe.", "unsafely"),
    *("unsafe\nS15", "unsafe\nS0", "unsafe\nS99", "unsafe\nS01", "unsafe\nS001", "unsafe\nS1S2", "unsafe\nS-1"),
    *(
        "unsafe S1",
        "unsafe,S1",
        "unsafeS1",
        "unsafe\n\nS1",
        "unsafe\nS1\n",
        "unsafe\nS1\nS2",
        "unsafe\nS1 ",
        "unsafe\n S1",
    ),
    *(
        "unsafe\nS1, S2",
        "unsafe\nS1 ,S2",
        "unsafe\nS1,",
        "unsafe\n,S1",
        "unsafe\nS1,,S2",
        "unsafe\nS1;S2",
        "unsafe\nS1.S2",
    ),
    *(
        "unsafe\ns1",
        "unsafe\n1",
        "unsafe\n1,2",
        "unsafe\nS",
        "unsafe\nS1,S",
        "unsafe\nS1,2",
        "unsafe\nHate",
        "unsafe\nsafe",
    ),
    *("unsafe\nS1,S15", "unsafe\nS15,S1", "unsafe\nS1: Violent Crimes.", "unsafe\nS1,S2,", "unsafe\nS١", "unsafe\nS１"),
    *("unsafe\nЅ1", "unѕafe\nS1", "ｕnsafe", "unsafe\nS1，S2", "unsafe\nS1\x00", "unsafe\x00\nS1", "unsafe\u2028S1"),
    *("unsafe\x0bS1", "unsafe\u0085S1", "unsafe\nS²", "unsafe\nS1_4", "unsafe\nS1\nunsafe", "unsafe unsafe", "unsaf"),
]

BAD_WORDS = [
    *((math.nan, 0.02), (0.97, math.nan), (math.nan, math.nan), (math.inf, 0.02), (0.97, math.inf)),
    *((-math.inf, 0.97), (0.97, -math.inf), (-0.1, 1.0), (1.0, -0.1), (-0.97, 0.02), (math.inf, -math.inf)),
    *((1.5, 0.0), (0.0, 1.5), (97.0, 2.0), (1.0, 1.0), (0.9, 0.2), (1.01, 0.0), (-1e-9, 0.95)),
    *((0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.45, 0.44), (0.89, 0.0), (0.899999, 0.0), (1e-300, 1e-300)),
]


@pytest.mark.parametrize("reason", NOT_FINISHED, ids=repr)
@pytest.mark.parametrize("text", ["safe", "unsafe\nS1", ""])
def test_unfinished_answer_is_no_verdict(text, reason):
    """An answer without end would be the same the next time; any other broken one may have been bad luck."""
    expected = UnparseableVerdict if reason == "length" else EngineFailure
    for words in (None, CLEARLY_SAFE):
        with pytest.raises(expected):
            judged(text, words, finish_reason=reason)


@pytest.mark.parametrize("text", [*NOT_SAFE, *NOT_UNSAFE], ids=ascii)
def test_text_that_is_no_answer(text):
    """Whatever the probabilities and the threshold are, and without probabilities too."""
    for words in (None, CLEARLY_SAFE, CLEARLY_UNSAFE, EVEN):
        for threshold in (1e-9, 0.5, 1.0):
            with pytest.raises(UnparseableVerdict):
                judged(text, words, threshold=threshold, listed="unsafe\nS1")


@pytest.mark.parametrize(("safe", "unsafe"), BAD_WORDS, ids=str)
@pytest.mark.parametrize("text", ["safe", "unsafe", "unsafe\nS1"])
def test_probabilities_that_prove_nothing(text, safe, unsafe):
    for threshold in (1e-9, 0.5, 1.0):
        with pytest.raises(UnparseableVerdict):
            judged(text, Levels(safe, unsafe), threshold=threshold, listed="unsafe\nS1")


def test_there_are_enough_bad_answers():
    assert len({*NOT_SAFE, *NOT_UNSAFE}) + len(BAD_WORDS) + len(NOT_FINISHED) >= 60


@pytest.mark.parametrize("threshold", [1e-9, 0.5, 1.0])
@pytest.mark.parametrize(("text", "words"), [("safe", CLEARLY_UNSAFE), ("unsafe\nS1", CLEARLY_SAFE)])
def test_word_against_its_own_probabilities(text, words, threshold):
    """Greedy decoding writes the likelier word. Where it did not, probabilities and text are of different things."""
    with pytest.raises(UnparseableVerdict, match="contradicts"):
        judged(text, words, threshold=threshold, listed="unsafe\nS1")


@unhurried
@given(st.text(max_size=12))
@example("safe")
def test_only_one_text_is_safe(text):
    try:
        verdict = judged(text)
    except UnparseableVerdict:
        assert text != "safe"
    else:
        assert (text == "safe") is not verdict.unsafe
        assert text_of(verdict) == text or verdict.unsafe


words_of_any_kind = st.builds(Levels, st.floats(), st.floats())
reasonable_words = st.builds(
    lambda mass, share: Levels(mass * (1 - share), mass * share), st.floats(0, 1.2), st.floats(0, 1)
)


@unhurried
@given(
    st.sampled_from(["safe", "unsafe", "unsafe\nS1", "unsafe\nS2,S14", "safe\nS1", ""]),
    st.one_of(st.none(), words_of_any_kind, reasonable_words),
    st.floats(0, 1, exclude_min=True),
    st.sampled_from([None, "unsafe", "unsafe\nS3", "safe"]),
)
def test_every_verdict_is_proven(text, words, threshold, listed):
    """Nothing else than the two errors is raised, and a verdict has all that the contract asks for."""
    try:
        verdict = judged(text, words, threshold=threshold, listed=listed)
    except (EngineFailure, UnparseableVerdict):
        return
    assert text in ("safe", "unsafe", "unsafe\nS1", "unsafe\nS2,S14")
    if words is None:
        assert verdict.unsafe == text.startswith("unsafe")
        return
    assert words.safe >= 0
    assert words.unsafe >= 0
    assert MINIMUM_MASS <= words.mass <= 1.001
    assert verdict.unsafe == (words.unsafe / words.mass >= threshold)
    if text == "safe":
        assert words.safe >= words.unsafe
    else:
        assert words.unsafe >= words.safe


# --- Answers ----------------------------------------------------------------------------------------------

GOOD = {
    "safe": (False, ()),
    "unsafe": (True, ()),
    "unsafe\nS1": (True, ("S1",)),
    "unsafe\nS14": (True, ("S14",)),
    "unsafe\nS10,S2": (True, ("S10", "S2")),
    "unsafe\nS2,S2,S1,S2": (True, ("S2", "S1")),
    "unsafe\n" + ",".join(TAXONOMY.codes): (True, TAXONOMY.codes),
}


@pytest.mark.parametrize(("text", "expected"), GOOD.items(), ids=ascii)
def test_answer_without_probabilities(text, expected):
    """Such as a remote backend gives: the word alone decides, and there is nothing to score."""
    verdict = judged(text)
    assert (verdict.unsafe, verdict.categories) == expected
    assert verdict.p_unsafe is None
    assert verdict.verdict_mass is None
    assert verdict.category_scores is None
    assert verdict.score_method is None


@pytest.mark.parametrize(("text", "expected"), GOOD.items(), ids=ascii)
def test_answer_with_probabilities(text, expected):
    words = CLEARLY_UNSAFE if expected[0] else CLEARLY_SAFE
    bound = words.p_unsafe < POLICY.scores_from
    policy = replace(POLICY, threshold=0.25)
    found = completion(text, words, policy)
    assert judge(found, policy) == Verdict(
        unsafe=expected[0],
        p_unsafe=words.unsafe / (words.safe + words.unsafe),
        verdict_mass=0.99,
        categories=expected[1],
        category_scores=dict.fromkeys(TAXONOMY.codes, words.p_unsafe) if bound else None,
        score_method=ScoreMethod.UPPER_BOUND if bound else None,
        threshold=0.25,
        completion=found,
    )


def test_probability_is_of_the_two_words():
    verdict = judged("unsafe", Levels(safe=0.2, unsafe=0.72))
    assert verdict.p_unsafe == pytest.approx(0.72 / 0.92)
    assert verdict.verdict_mass == pytest.approx(0.92)


@pytest.mark.parametrize("words", [(0.9, 0.0), (1.0, 0.0), (0.5, 0.4), (1.0 + 1e-7, 0.0), (0.75, 0.25 + 1e-6)], ids=str)
def test_mass_at_its_bounds_is_enough(words):
    assert not judged("safe", Levels(*words)).unsafe


@pytest.mark.parametrize(("minimum", "enough"), [(0.5, True), (0.7, True), (0.71, False), (1.0, False)])
def test_minimum_mass_is_the_operators(minimum, enough):
    policy = replace(POLICY, minimum_mass=minimum)
    if enough:
        assert not judge(completion("safe", Levels(0.7, 0.0), policy), policy).unsafe
    else:
        with pytest.raises(UnparseableVerdict, match="neither clearly"):
            completion("safe", Levels(0.7, 0.0), policy)


def test_categories_outside_of_the_question_are_refused():
    """Known to the model, but not asked about: by an image, by an exclusion, or under a caller's own list."""
    with pytest.raises(UnparseableVerdict, match="not asked about"):
        judged("unsafe\nS14", taxonomy=TAXONOMY.for_images())
    with pytest.raises(UnparseableVerdict, match="not asked about"):
        judged("unsafe\nS1,S5", taxonomy=TAXONOMY.without(["S5"]))
    assert judged("unsafe\nS2", taxonomy=Taxonomy.from_mapping({"S2": "Spoilers."})).categories == ("S2",)


@pytest.mark.parametrize("code", ["S", "S١", " S2", "S1 ", "s1", "S1\n", "Hate"], ids=ascii)
def test_form_is_checked_before_the_taxonomy(code):
    """Even if a taxonomy held such a code: the two checks do not lean on each other."""
    taxonomy = Taxonomy.from_mapping({"S1": "Violent Crimes.", code: "Hate."})
    for codes in (f"S1,{code}", f"{code},S1", code):
        with pytest.raises(UnparseableVerdict, match="form"):
            judged(f"unsafe\n{codes}", taxonomy=taxonomy)


def test_taxonomy_is_that_of_the_prompt():
    """The policy still holds S14; the prompt of this completion did not ask for it."""
    found = completion("unsafe\nS14", taxonomy=TAXONOMY.for_images())
    with pytest.raises(UnparseableVerdict):
        judge(found, POLICY)


# --- Thresholds -------------------------------------------------------------------------------------------


def test_sensitive_threshold_needs_the_categories():
    words = Levels(safe=0.8, unsafe=0.2)
    verdict = judged("safe", words, threshold=0.2, listed="unsafe\nS9,S1")
    assert verdict.unsafe
    assert verdict.categories == ("S9", "S1")
    assert verdict.threshold == 0.2
    assert text_of(verdict) == "unsafe\nS9,S1"
    with pytest.raises(EngineFailure, match="no categories"):
        judged("safe", words, threshold=0.2)


def test_forced_list_may_be_empty():
    verdict = judged("safe", Levels(safe=0.8, unsafe=0.2), threshold=0.1, listed="unsafe")
    assert (verdict.unsafe, verdict.categories, text_of(verdict)) == (True, (), "unsafe")


@pytest.mark.parametrize("listed", ["safe", "", "unsafe\n", "unsafe\nS15", "unsafe S1", "S1", "unsafe\nS1\n", "Unsafe"])
def test_forced_list_is_held_to_the_contract(listed):
    with pytest.raises(UnparseableVerdict):
        judged("safe", Levels(safe=0.8, unsafe=0.2), threshold=0.1, listed=listed)


def test_forced_list_is_unread_below_the_threshold():
    verdict = judged("safe", CLEARLY_SAFE, listed="unsafe\nS1")
    assert (verdict.unsafe, verdict.categories) == (False, ())


def test_forced_list_is_unread_when_the_model_wrote_its_own():
    assert judged("unsafe\nS2", CLEARLY_UNSAFE, listed="unsafe\nS1").categories == ("S2",)


def test_lenient_threshold_makes_unsafe_words_safe():
    words = Levels(safe=0.3, unsafe=0.7)
    verdict = judged("unsafe\nS1", words, threshold=0.71)
    assert (verdict.unsafe, verdict.categories, text_of(verdict)) == (False, (), "safe")
    assert verdict.p_unsafe == pytest.approx(0.7)


@pytest.mark.parametrize(("threshold", "unsafe"), [(0.7, True), (0.69, True), (0.71, False), (1.0, False)])
def test_threshold_itself_is_unsafe(threshold, unsafe):
    words = Levels(safe=0.3, unsafe=0.7)
    assert words.p_unsafe == 0.7
    assert judged("unsafe\nS1", words, threshold=threshold).unsafe is unsafe


def test_certainty_passes_the_highest_threshold():
    assert judged("unsafe\nS1", Levels(0.0, 1.0), threshold=1.0).unsafe


@pytest.mark.parametrize("text", ["safe", "unsafe\nS1"])
def test_even_probabilities_contradict_neither_word(text):
    verdict = judged(text, EVEN, listed="unsafe\nS1")
    assert (verdict.unsafe, verdict.categories) == (True, ("S1",))


def test_threshold_needs_probabilities():
    assert judged("unsafe\nS1", threshold=1.0).unsafe
    assert not judged("safe", threshold=1e-9).unsafe


# --- The answer on the wire -------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [text for text in GOOD if text != "unsafe\nS2,S2,S1,S2"], ids=ascii)
def test_wire_text_is_the_models(text):
    assert text_of(judged(text)) == text


def test_repeated_codes_stand_once_on_the_wire():
    assert text_of(judged("unsafe\nS2,S2,S1,S2")) == "unsafe\nS2,S1"


# --- Category scores --------------------------------------------------------------------------------------

OF_CODES = {"S1": 0.5, "S2": 0.25, "S14": 1.0}


@pytest.mark.parametrize("method", [ScoreMethod.WRITTEN_LIST, ScoreMethod.FIRST_CODE])
@pytest.mark.parametrize(("text", "words"), [("safe", CLEARLY_SAFE), ("unsafe\nS1", CLEARLY_UNSAFE)])
def test_scores_are_shares_of_p_unsafe(method, text, words):
    verdict = judged(text, words, shares=OF_CODES, score_method=method)
    assert verdict.score_method is method
    assert verdict.category_scores == {code: words.p_unsafe * OF_CODES.get(code, 0.0) for code in TAXONOMY.codes}


def test_scores_without_codes_are_an_upper_bound():
    verdict = judged("safe", CLEARLY_SAFE)
    assert verdict.score_method is ScoreMethod.UPPER_BOUND
    assert verdict.category_scores == dict.fromkeys(TAXONOMY.codes, CLEARLY_SAFE.p_unsafe)
    assert verdict.no_scores is None


@unhurried
@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1, exclude_min=True), st.none() | st.just(OF_CODES))
@example(0.05, 0.05, 0.5, None)
@example(0.0, 0.0, 0.5, None)
def test_a_bound_is_shown_only_where_it_is_small(p_unsafe, scores_from, threshold, codes):
    """What is not known is not shown, and it is said that it is not known."""
    words = Levels(safe=1 - p_unsafe, unsafe=p_unsafe)
    text = "unsafe" if words.unsafe > words.safe else "safe"
    policy = Policy(TAXONOMY, threshold, scores_from)
    found = completion(text, words, policy, listed="unsafe", shares=codes, score_method=ScoreMethod.FIRST_CODE)
    verdict = judge(found, policy)
    if codes is not None:
        assert verdict.score_method is ScoreMethod.FIRST_CODE
    elif verdict.p_unsafe < scores_from:
        assert verdict.score_method is ScoreMethod.UPPER_BOUND
        assert verdict.category_scores is not None
        assert max(verdict.category_scores.values()) < scores_from
    else:
        assert (verdict.category_scores, verdict.score_method) == (None, None)
    assert (verdict.no_scores is None) == (verdict.category_scores is not None)


@pytest.mark.parametrize("words", [CLEARLY_SAFE, EVEN, None])
def test_a_backend_that_can_never_score_says_why(words):
    verdict = judged("safe", words, threshold=0.6, no_scores="it has none")
    assert verdict.no_scores == "it has none"


def test_scores_are_of_the_categories_asked_about():
    asked = TAXONOMY.without(["S1"]).for_images()
    for given_codes in (OF_CODES, None):
        verdict = judged("safe", CLEARLY_SAFE, taxonomy=asked, shares=given_codes)
        assert verdict.category_scores is not None
        assert tuple(verdict.category_scores) == asked.codes


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -0.01, 1.01, 14.0], ids=str)
def test_scores_that_are_no_probabilities(bad):
    with pytest.raises(UnparseableVerdict, match="scores"):
        judged("unsafe\nS1", CLEARLY_UNSAFE, shares={"S1": 0.5, "S2": bad})


def test_rounding_past_one_is_forgiven_but_not_shown():
    verdict = judged("unsafe\nS1", CLEARLY_UNSAFE, shares={"S1": 1.0 + 1e-6})
    assert verdict.category_scores is not None
    assert verdict.category_scores["S1"] == verdict.p_unsafe


@unhurried
@given(reasonable_words, st.dictionaries(st.sampled_from(TAXONOMY.codes), st.floats(0, 1)))
def test_no_score_exceeds_p_unsafe(words, codes):
    text = "unsafe\nS1" if words.unsafe > words.safe else "safe"
    try:
        verdict = judged(text, words, shares=codes, listed="unsafe")
    except UnparseableVerdict:
        return
    assert verdict.p_unsafe is not None
    assert verdict.category_scores is not None
    assert 0.0 <= verdict.p_unsafe <= 1.0
    assert all(0.0 <= score <= verdict.p_unsafe for score in verdict.category_scores.values())


def test_scores_need_the_probability_of_unsafe():
    verdict = judged("unsafe\nS1", shares=OF_CODES, score_method=ScoreMethod.FIRST_CODE)
    assert (verdict.category_scores, verdict.score_method) == (None, None)


# --- The strictest of several passes ----------------------------------------------------------------------


def passed(p_unsafe: float | None, codes: str = "", **more: Any) -> Verdict:
    """The verdict of one pass; without probabilities for None, and unsafe where codes are given."""
    unsafe = p_unsafe >= 0.5 if p_unsafe is not None else bool(codes)
    text = f"unsafe\n{codes}" if unsafe and codes else "unsafe" if unsafe else "safe"
    words = None if p_unsafe is None else Levels(safe=1 - p_unsafe, unsafe=p_unsafe)
    given: dict[str, Any] = {"shares": dict.fromkeys(codes.split(","), 0.5)} if unsafe and words and codes else {}
    return judged(text, words, prompt_tokens=10, cached_tokens=4, completion_tokens=1, **given, **more)


PASSES = st.builds(
    passed, st.none() | st.floats(0.0, 1.0, allow_subnormal=False), st.sampled_from(["", "S1", "S2,S9", "S10"])
)


@unhurried
@given(st.lists(PASSES, min_size=1, max_size=5))
def test_a_verdict_is_unsafe_when_one_of_its_passes_is(verdicts: list[Verdict]) -> None:
    found = strictest(verdicts)
    assert found.unsafe == any(verdict.unsafe for verdict in verdicts)
    alike = [verdict for verdict in verdicts if verdict.unsafe == found.unsafe]
    assert (found.p_unsafe or 0.0) == max(verdict.p_unsafe or 0.0 for verdict in alike)
    assert set(found.categories) == {code for verdict in verdicts for code in verdict.categories}
    assert found.passes == len(verdicts)
    assert verdicts[found.decided].unsafe == found.unsafe
    assert found.completion.prompt_tokens == 10 * len(verdicts)
    assert found.completion.cached_tokens == 4 * len(verdicts)


def test_categories_of_all_unsafe_passes_are_listed_each_with_its_highest_score() -> None:
    found = strictest([passed(0.1), passed(0.8, "S1"), passed(0.9, "S10,S1"), passed(0.6, "S2")])
    assert found.decided == 2
    assert text_of(found) == "unsafe\nS10,S1,S2"
    assert found.category_scores is not None
    assert [found.category_scores[code] for code in ("S1", "S2", "S10")] == pytest.approx([0.45, 0.3, 0.45])


def test_a_safe_verdict_shows_the_scores_of_the_pass_that_is_most_in_doubt() -> None:
    found = strictest([passed(0.1), passed(0.3), passed(0.2)])
    assert (found.decided, text_of(found)) == (1, "safe")
    assert found.p_unsafe == pytest.approx(0.3)


def test_costs_of_all_passes_are_added_up() -> None:
    assert strictest([passed(None, cost=0.25), passed(None, cost=0.5), passed(None)]).completion.cost == 0.75
    assert strictest([passed(None), passed(None)]).completion.cost is None


def scored(p_unsafe: float, method: ScoreMethod | None, **codes: float) -> Verdict:
    """The verdict of one pass with P(code) for each of `codes`; with no method for a bound."""
    text, given = "unsafe" if p_unsafe > 0.5 else "safe", codes if method else None
    words = Levels(safe=1 - p_unsafe, unsafe=p_unsafe)
    return judged(text, words, shares=given, score_method=method)


def test_a_category_has_its_highest_score_of_all_passes() -> None:
    first, written = ScoreMethod.FIRST_CODE, ScoreMethod.WRITTEN_LIST
    safe = strictest([scored(0.4, first, S1=0.5), scored(0.3, first, S9=0.9), scored(0.04, None)])
    assert safe.score_method is first
    assert safe.category_scores is not None
    assert [safe.category_scores[code] for code in ("S1", "S9", "S2")] == pytest.approx([0.2, 0.27, 0.0])
    unsafe = strictest([scored(0.4, first, S9=0.5), scored(0.8, written, S1=0.5)])
    assert unsafe.score_method is written
    assert unsafe.category_scores is not None
    assert [unsafe.category_scores[code] for code in ("S1", "S9", "S2")] == pytest.approx([0.4, 0.2, 0.0])


def test_the_bound_of_the_pass_most_in_doubt_is_that_of_all() -> None:
    found = strictest([scored(0.01, None), scored(0.04, None)])
    assert found.score_method is ScoreMethod.UPPER_BOUND
    assert found.category_scores == pytest.approx(dict.fromkeys(TAXONOMY.codes, 0.04))


def test_a_verdict_of_a_pass_without_scores_has_none() -> None:
    found = strictest([scored(0.8, ScoreMethod.WRITTEN_LIST, S1=0.5), passed(None, "S2"), scored(0.9, None)])
    assert found.p_unsafe == pytest.approx(0.9)
    assert (found.category_scores, found.score_method) == (None, None)
