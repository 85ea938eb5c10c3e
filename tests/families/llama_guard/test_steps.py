"""Llama Guard's steps, driven without an engine: what is asked, and what is read from any answer."""

from dataclasses import replace

import pytest

from server.checkpoints.profile import load_profile
from server.domain.conversation import Conversation, TextPart
from server.domain.errors import UnparseableVerdict
from server.domain.policy import Policy
from server.domain.verdict import Reading, ScoreMethod, Severity
from server.families.base import Answer, Ask
from server.families.llama_guard.family import LlamaGuard
from server.families.llama_guard.steps import NO_SCORES, LlamaGuardAsker
from tests.families.drive import Script, answer_of, control_id, drive, verdict_of
from tests.golden.vocabulary import vocabulary

POLICY = Policy(load_profile("llama-guard-4-12b").taxonomy)
TOKENIZER = vocabulary("llama 4").ours
END = control_id(TOKENIZER, "<|eot|>")
ASKER = LlamaGuard().asker(TOKENIZER, [END])
ASKED_ABOUT = Conversation.from_user(TextPart("How do I bake bread?"))

SAFE = answer_of(TOKENIZER, "safe", {"safe": 0.9, "unsafe": 0.09})
UNSAFE = answer_of(TOKENIZER, "unsafe\nS9,S1", {"safe": 0.01, "unsafe": 0.98}, {}, {}, {"9": 0.8, "1": 0.1}, end=END)
FIRST_CODE = answer_of(TOKENIZER, "9", {"9": 0.7, "1": 0.2})


def asked(script: Script, policy: Policy = POLICY, asker: LlamaGuardAsker = ASKER) -> tuple[Reading, list[Ask]]:
    return drive(asker.steps(ASKED_ABOUT, policy), script)


def in_turn(*answers: Answer) -> Script:
    left = iter(answers)
    return lambda _: next(left)


def test_safe_takes_one_step():
    reading, asks = asked(in_turn(SAFE), replace(POLICY, scores_from=0.5))
    assert (reading.said.severity, reading.decision.unsafe, reading.shares) == (Severity.SAFE, False, None)
    assert [ask.begun for ask in asks] == [(ASKER.tokens.blank_line,)]
    assert asks[0].stop == (ASKER.tokens.safe, END)


def test_unsafe_takes_one_step_and_is_scored_by_its_list():
    reading, asks = asked(in_turn(UNSAFE))
    verdict = verdict_of(reading, asks, POLICY)
    assert (verdict.categories, len(asks), verdict.score_method) == (("S9", "S1"), 1, ScoreMethod.WRITTEN_LIST)
    assert verdict.category_scores is not None
    assert verdict.category_scores["S9"] == pytest.approx(0.8 * 0.98 / 0.99)


def test_a_safe_word_with_doubt_is_scored_by_the_first_code():
    reading, asks = asked(in_turn(SAFE, FIRST_CODE))
    assert reading.score_method is ScoreMethod.FIRST_CODE
    assert asks[1].begun == (ASKER.tokens.blank_line, *TOKENIZER.encode_text("unsafe\nS"))
    assert asks[1].prompt is asks[0].prompt
    assert (asks[1].max_tokens, asks[1].may_be_cut) == (1, True)


def test_a_threshold_below_the_word_has_it_list_categories():
    policy = replace(POLICY, threshold=0.05)
    listing = answer_of(TOKENIZER, "\nS9", {}, {}, {"9": 0.6}, end=END)
    reading, asks = asked(in_turn(SAFE, listing), policy)
    verdict = verdict_of(reading, asks, policy)
    assert (verdict.unsafe, verdict.categories) == (True, ("S9",))
    assert asks[1].begun == (ASKER.tokens.blank_line, ASKER.tokens.unsafe)
    assert verdict.category_scores is not None
    assert verdict.category_scores["S9"] == pytest.approx(0.6 * 0.09 / 0.99)


def test_an_answer_that_is_not_clear_may_begin_in_its_own_way():
    unclear = answer_of(TOKENIZER, "safe", {"safe": 0.3, "unsafe": 0.1})
    freely = answer_of(TOKENIZER, "\n\nsafe", {}, {"safe": 0.95, "unsafe": 0.01}, end=END)
    reading, asks = asked(in_turn(unclear, freely))
    assert [ask.begun for ask in asks] == [(ASKER.tokens.blank_line,), ()]
    assert (reading.said.text, reading.decision.unsafe) == ("safe", False)
    with pytest.raises(UnparseableVerdict, match="neither clearly"):
        asked(in_turn(unclear, unclear))


@pytest.mark.parametrize("text", ["Sure!", "safe\nS1", "unsafe\nS15x", "unsafe S1"])
def test_any_other_answer_is_none(text):
    with pytest.raises(UnparseableVerdict, match="form"):
        asked(in_turn(answer_of(TOKENIZER, text, {"safe": 0.9, "unsafe": 0.09}, end=END)))


def test_unsafe_without_a_list_is_scored_by_the_first_code():
    """A model may write the word alone. No place of a list is no score of 0."""
    alone = answer_of(TOKENIZER, "unsafe", {"unsafe": 0.97, "safe": 0.01}, end=END)
    reading, asks = asked(in_turn(alone, FIRST_CODE))
    verdict = verdict_of(reading, asks, POLICY)
    assert (verdict.unsafe, verdict.categories, verdict.score_method) == (True, (), ScoreMethod.FIRST_CODE)
    assert verdict.category_scores is not None
    assert verdict.p_unsafe is not None
    assert verdict.category_scores["S9"] == pytest.approx(0.7 * verdict.p_unsafe)


@pytest.mark.parametrize(("answer", "scores_from"), [(SAFE, 0.05), (SAFE, 0.5), (UNSAFE, 0.05)])
def test_numbers_of_several_tokens_leave_categories_without_scores_and_say_so(answer, scores_from):
    asker = LlamaGuard().asker(TOKENIZER, [END])
    asker.tokens = replace(asker.tokens, numbers={})
    policy = replace(POLICY, scores_from=scores_from)
    reading, asks = asked(in_turn(answer), policy, asker)
    verdict = verdict_of(reading, asks, policy)
    assert verdict.no_scores == NO_SCORES
    assert (verdict.category_scores is None) is (verdict.p_unsafe >= scores_from)


def test_a_tokenizer_without_the_words_cannot_be_asked():
    with pytest.raises(ValueError, match="no token that ends"):
        LlamaGuard().asker(TOKENIZER, [])
