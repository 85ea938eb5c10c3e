"""Equal keys for equal questions, and for no others."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.checkpoints.profile import load_profile
from server.domain.caller import ORDINARY, Handling
from server.domain.conversation import Conversation, ImagePart, Part, Role, TextPart, Turn
from server.domain.policy import Policy
from server.domain.taxonomy import Taxonomy
from server.moderation.question import Questions

POLICY = Policy(load_profile("llama-guard-4-12b").taxonomy)
QUESTIONS = Questions("a model", POLICY)
HELLO = Conversation.from_user(TextPart("hello"))

# Few words, out of what keys are made of: whatever could be read in two ways soon is.
WORDS = st.text(st.sampled_from("\x00\x04\x05text'"), max_size=9) | st.sampled_from(
    ["", "text", "image", "User", "Agent", "\x00\x00\x00\x00\x00\x00\x00\x04text", "é", "e\u0301", "\ud800", "None"]
)
PARTS = st.builds(TextPart, WORDS, operator=st.booleans()) | st.builds(
    ImagePart, WORDS.map("data:{}".format), WORDS, st.booleans()
)
TURNS = st.builds(Turn, st.sampled_from(Role), st.lists(PARTS, max_size=3).map(tuple))
CONVERSATIONS = st.lists(TURNS, min_size=1, max_size=3).map(tuple).map(Conversation)
HANDLINGS = st.builds(
    Handling,
    tenant=st.none() | WORDS,
    never_remote=st.booleans(),
    top_logprobs=st.none() | st.integers(0, 2),
)
TAXONOMIES = st.dictionaries(st.sampled_from(["S1", "S2"]), WORDS, min_size=1).map(Taxonomy.from_mapping)
POLICIES = st.just(POLICY) | st.builds(
    Policy, TAXONOMIES, st.sampled_from([0.5, 0.25]), scores_from=st.sampled_from([0.05, 0.0])
)
ALL = st.tuples(CONVERSATIONS, POLICIES, HANDLINGS)


@given(ALL, ALL)
def test_two_questions_have_one_key_only_when_they_are_equal(
    one: tuple[Conversation, Policy, Handling], other: tuple[Conversation, Policy, Handling]
) -> None:
    assert (QUESTIONS.key(*one) == QUESTIONS.key(*other)) == (one == other)


@given(CONVERSATIONS, st.data())
def test_the_same_characters_cut_otherwise_are_another_question(
    conversation: Conversation, data: st.DataObject
) -> None:
    turn = data.draw(st.sampled_from(conversation.turns))
    texts = "".join(turn.texts)
    at = data.draw(st.integers(0, len(texts)))
    cut = replace(turn, parts=(TextPart(texts[:at]), TextPart(texts[at:])))
    other = Conversation(tuple(cut if each is turn else each for each in conversation.turns))
    same = QUESTIONS.key(conversation, POLICY, ORDINARY) == QUESTIONS.key(other, POLICY, ORDINARY)
    assert same == (conversation == other)


USER, AGENT = Role.USER, Role.AGENT
IMAGE = ImagePart("data:a", "text")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([Turn(USER, (IMAGE,))], [Turn(USER, (TextPart("data:a"),))]),
        ([Turn(USER, (IMAGE,))], [Turn(USER, (TextPart("image"), TextPart("text"), TextPart("data:a")))]),
        ([Turn(USER, (TextPart("Agent"),))], [Turn(USER, ()), Turn(AGENT, ())]),
        ([Turn(USER, (TextPart("a"), TextPart("b")))], [Turn(USER, (TextPart("ab"),))]),
    ],
)
def test_a_text_is_never_taken_for_what_it_names(one: list[Turn], other: list[Turn]) -> None:
    keys = [QUESTIONS.key(Conversation(tuple(turns)), POLICY, ORDINARY) for turns in (one, other)]
    assert keys[0] != keys[1]


@pytest.mark.parametrize(
    "change",
    [
        {"tenant": "key_1"},
        {"tenant": ""},
        {"tenant": "None"},
        {"never_remote": True},
        {"top_logprobs": 0},
        {"top_logprobs": 1},
    ],
)
def test_whoever_asks_otherwise_asks_something_else(change: dict[str, object]) -> None:
    other = replace(ORDINARY, **change)  # type: ignore[arg-type]
    assert QUESTIONS.key(HELLO, POLICY, other) != QUESTIONS.key(HELLO, POLICY, ORDINARY)


def test_every_field_of_handling_is_thought_of() -> None:
    """A new one changes the answer, and belongs to the key, or it does not, as `background`."""
    assert set(Handling.__dataclass_fields__) == {
        *("tenant", "never_remote", "top_logprobs"),
        # They change which conversation is asked about, not what is answered about it.
        *("finished_prompts", "background", "request_id"),
    }


@pytest.mark.parametrize("change", [{"background": True}, {"finished_prompts": True}, {"request_id": "req_1"}])
def test_what_changes_no_answer_asks_the_same(change: dict[str, object]) -> None:
    other = replace(ORDINARY, **change)  # type: ignore[arg-type]
    assert QUESTIONS.key(HELLO, POLICY, other) == QUESTIONS.key(HELLO, POLICY, ORDINARY)


@pytest.mark.parametrize(
    "policy",
    [
        replace(POLICY, threshold=0.4),
        replace(POLICY, scores_from=0.0),
        POLICY.narrowed(excluded=["S5"]),
        POLICY.narrowed(categories={code.code: code.prompt_name for code in POLICY.taxonomy.categories}),
        POLICY.narrowed(categories={"S1": "Bread."}),
    ],
)
def test_another_policy_asks_something_else(policy: Policy) -> None:
    assert QUESTIONS.key(HELLO, policy, ORDINARY) != QUESTIONS.key(HELLO, POLICY, ORDINARY)


def test_an_equal_policy_asks_the_same_whoever_brings_it() -> None:
    assert QUESTIONS.key(HELLO, replace(POLICY), ORDINARY) == QUESTIONS.key(HELLO, POLICY, ORDINARY)


def test_another_model_is_asked_something_else() -> None:
    other = Questions("another model", POLICY)
    assert other.key(HELLO, POLICY, ORDINARY) != QUESTIONS.key(HELLO, POLICY, ORDINARY)


def with_images(*urls: str) -> Conversation:
    parts: list[Part] = [ImagePart(url) for url in urls]
    return Conversation.from_user(TextPart("hello"), *parts)


def test_images_are_told_apart_by_their_bytes_and_order() -> None:
    keys = [
        QUESTIONS.key(with_images(*urls), POLICY, ORDINARY)
        for urls in ((), ("data:a",), ("data:b",), ("DATA:a",), ("data:a", "data:b"), ("data:b", "data:a"))
    ]
    assert len(set(keys)) == len(keys)
    assert QUESTIONS.key(with_images("data:a"), POLICY, ORDINARY) == keys[1]


@pytest.mark.parametrize(
    "url", ["http://host/a.png", "https://host/a.png", "HTTPS://host/a.png", "ftp://host/a.png", ""]
)
def test_what_may_change_behind_its_address_is_asked_once(url: str) -> None:
    conversation = with_images("data:a", url)
    assert QUESTIONS.key(conversation, POLICY, ORDINARY) != QUESTIONS.key(conversation, POLICY, ORDINARY)


def test_a_key_holds_nothing_of_what_was_asked() -> None:
    key = QUESTIONS.key(Conversation.from_user(TextPart("hello " * 10_000)), POLICY, Handling(tenant="key_1"))
    assert isinstance(key, bytes)
    assert len(key) == 32
