"""What is written of a verdict: whole words and whole codes, whatever a caller bounds."""

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.checkpoints.profile import load_profile
from server.domain.policy import Policy
from server.domain.verdict import Completion, Levels, Token, Verdict, judge
from server.families.llama_guard.wording import splits_an_answer, write
from tests.fakes import spelt
from tests.readings import reading

TAXONOMY = load_profile("llama-guard-4-12b").taxonomy
CODES = TAXONOMY.codes
WHOLE = re.compile(r"safe|unsafe(\n[A-Z]\d+(,[A-Z]\d+)*)?")


def verdict(text: str, *, threshold: float = 0.5, p_unsafe: float | None = None, **fields: Any) -> Verdict:
    if p_unsafe is None:
        p_unsafe = 0.1 if text == "safe" else 0.9
    policy = Policy(TAXONOMY, threshold)
    levels = Levels(safe=1 - p_unsafe, unsafe=p_unsafe)
    read = reading(text, policy, levels, **{"tokens": spelt(text, p_unsafe, 3), **fields})
    return judge(Completion(read, "stop", "fake", TAXONOMY), policy)


def spelling(tokens: tuple[Token, ...] | None) -> str:
    assert tokens is not None
    return b"".join(token.content for token in tokens).decode()


@pytest.mark.parametrize(
    ("text", "limit", "written", "cut"),
    [
        ("safe", None, "safe", False),
        ("safe", 1, "safe", False),
        ("unsafe", 1, "unsafe", False),
        ("unsafe\nS1", None, "unsafe\nS1", False),
        ("unsafe\nS1", 1, "unsafe", True),
        ("unsafe\nS1", 2, "unsafe", True),
        ("unsafe\nS1", 3, "unsafe", True),
        ("unsafe\nS1", 4, "unsafe\nS1", False),
        ("unsafe\nS1,S12", 4, "unsafe\nS1", True),
        ("unsafe\nS1,S12", 5, "unsafe\nS1", True),
        ("unsafe\nS1,S12", 6, "unsafe\nS1,S12", False),
        ("unsafe\nS1,S12", 10**9, "unsafe\nS1,S12", False),
    ],
)
def test_a_bound_on_tokens_cuts_whole_codes(text: str, limit: int | None, written: str, cut: bool) -> None:
    answer = write(verdict(text), max_tokens=limit)
    assert (answer.text, answer.cut) == (written, cut)
    assert spelling(answer.tokens) == written
    assert limit is None or answer.tokens is None or len(answer.tokens) <= limit


@pytest.mark.parametrize(
    ("stop", "written"),
    [
        ("\n", "unsafe"),
        ("\nS1", "unsafe"),
        ("S", "unsafe"),
        ("S1", "unsafe"),
        (",", "unsafe\nS1"),
        (",S", "unsafe\nS1"),
        (",S12", "unsafe\nS1"),
        ("S12", "unsafe\nS1"),
        ("</s>", "unsafe\nS1,S12"),
        ("\n\n", "unsafe\nS1,S12"),
        ("User:", "unsafe\nS1,S12"),
        ("", "unsafe\nS1,S12"),
    ],
)
def test_a_stop_leaves_what_stands_before_it(stop: str, written: str) -> None:
    assert not splits_an_answer(stop)
    answer = write(verdict("unsafe\nS1,S12"), stop=[stop])
    assert (answer.text, answer.cut) == (written, False)
    assert spelling(answer.tokens) == written


def test_the_first_of_several_stops_counts() -> None:
    assert write(verdict("unsafe\nS1,S2,S3"), stop=["S3", ",S2", "x"]).text == "unsafe\nS1"


def test_a_bound_below_a_stop_is_what_cut() -> None:
    answer = write(verdict("unsafe\nS1,S2,S3"), stop=[",S3"], max_tokens=4)
    assert (answer.text, answer.cut) == ("unsafe\nS1", True)
    answer = write(verdict("unsafe\nS1,S2,S3"), stop=[",S3"], max_tokens=6)
    assert (answer.text, answer.cut) == ("unsafe\nS1,S2", False)


@pytest.mark.parametrize(
    "stop",
    ["safe", "unsafe", "un", "s", "e", "saf", "afe", "nsafe\n", "unsafe\n", "unsafe\nS1", "safe\nS1,", "e\nS",
     "1", "2", "12", "1,", "1,S", "14,S2", "0"],
)  # fmt: skip
def test_a_stop_inside_of_a_word_or_a_code_splits_it(stop: str) -> None:
    assert splits_an_answer(stop)


LISTS = st.lists(st.sampled_from(CODES), unique=True, max_size=14)
RENAMED = st.none() | st.just({code: f"O{index + 3}" for index, code in enumerate(CODES)})


@given(
    codes=LISTS,
    renamed=RENAMED,
    limit=st.none() | st.integers(1, 40),
    stops=st.lists(st.text("unsafe\nS,O1234 x", max_size=6), max_size=4),
)
def test_nothing_but_whole_words_and_codes_is_ever_written(
    codes: list[str], renamed: dict[str, str] | None, limit: int | None, stops: list[str]
) -> None:
    stops = [stop for stop in stops if not splits_an_answer(stop)]
    for text in ("safe", "\n".join(filter(None, ["unsafe", ",".join(codes)]))):
        whole = write(verdict(text), codes=renamed)
        answer = write(verdict(text), codes=renamed, max_tokens=limit, stop=stops)
        assert WHOLE.fullmatch(answer.text)
        assert whole.text.startswith(answer.text)
        assert answer.text.startswith(text[:4])
        assert spelling(answer.tokens) == answer.text
        assert not any(stop and stop in answer.text for stop in stops)
        if answer.text != whole.text:
            assert limit is not None or any(stop and stop in whole.text for stop in stops)


@given(stop=st.text("unsafe\nS,O12x", min_size=1, max_size=8), codes=LISTS)
def test_what_is_let_through_never_stops_inside_of_a_word(stop: str, codes: list[str]) -> None:
    if splits_an_answer(stop):
        return
    for text in ("safe", "\n".join(filter(None, ["unsafe", ",".join(codes)]))):
        before = text.partition(stop)[0]
        assert re.fullmatch(r"safe|unsafe(\n(S\d+(,S\d+)*,?)?)?", before), "half a word or code"
        assert not re.match(r"\d", text[len(before) :])


# --- Tokens ----------------------------------------------------------------------------------------------


def test_a_code_listed_twice_is_spelt_once() -> None:
    answer = write(verdict("unsafe\nS1,S2,S1,S3"))
    assert answer.text == spelling(answer.tokens) == "unsafe\nS1,S2,S3"


def test_tokens_come_under_the_callers_codes() -> None:
    answer = write(verdict("unsafe\nS1,S12"), codes={"S1": "O2", "S12": "A30", "S13": "O4"})
    assert answer.text == spelling(answer.tokens) == "unsafe\nO2,A30"
    assert answer.tokens is not None
    assert [token.text for token in answer.tokens] == ["unsafe", "\n", "O", "2", ",A", "30"]
    assert [token.text for token in answer.tokens[3].alternatives] == ["2", "4", "�"]
    assert [token.text for token in answer.tokens[0].alternatives] == ["unsafe", "safe"]


def test_without_tokens_the_answer_stands() -> None:
    answer = write(verdict("unsafe\nS1", tokens=None))
    assert (answer.text, answer.tokens) == ("unsafe\nS1", None)


def test_tokens_that_spell_something_else_are_not_shown() -> None:
    for tokens in (spelt("unsafe\nS2", 0.9, 0), spelt("unsafe\nS1", 0.9, 0)[:2], ()):  # type: ignore[index]
        assert write(verdict("unsafe\nS1", tokens=tokens)).tokens is None


def test_a_threshold_that_turns_the_word_turns_its_token() -> None:
    turned = verdict("unsafe\nS1", threshold=0.95, tokens=(Token(b"safe", math.log(0.1)),))
    assert write(turned).text == spelling(write(turned).tokens) == "safe"
    listed = verdict("safe", threshold=0.05, p_unsafe=0.1, listed="unsafe\nS9", tokens=spelt("unsafe\nS9", 0.1, 2))
    assert write(listed).text == spelling(write(listed).tokens) == "unsafe\nS9"
    assert math.exp(write(listed).tokens[0].logprob) == pytest.approx(0.099)  # type: ignore[index]


def test_a_verdict_under_other_codes_is_the_same_verdict() -> None:
    native = verdict("unsafe\nS1,S2", shares={"S1": 0.5, "S2": 0.25})
    renamed = native.under({"S1": "O1", "S2": "O7"})
    assert renamed.categories == ("O1", "O7")
    assert renamed.category_scores is not None
    assert native.category_scores is not None
    assert renamed.category_scores["O7"] == native.category_scores["S2"]
    assert len(renamed.category_scores) == 14
    assert renamed.completion is native.completion
