"""A question holds all that its verdict depends on; equal questions have equal keys, and no others have."""

from dataclasses import replace

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from server.backends.base import Case
from server.checkpoints.profile import load_profile
from server.domain.caller import ORDINARY, Handling
from server.domain.conversation import Conversation, ImagePart, Part, Role, TextPart, Turn
from server.domain.policy import Policy
from server.domain.taxonomy import Taxonomy
from server.domain.verdict import About, Verdict
from server.families.llama_guard.pictures import SIZES
from server.images import DecodedImage, ImageDecoder, ImageLimits
from server.moderation.moderator import Moderator
from server.moderation.passes import MAX_PASSES, Pass, passes_of
from server.moderation.question import AskedOnce, Question, Questions
from tests.fakes import FakeBackend
from tests.readings import FAMILY

POLICY = Policy(load_profile("llama-guard-4-12b").taxonomy, own_codes=FAMILY.own_codes)
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
        # They change where and when a request is read, and who is told what it cost.
        *("reading", "meter"),
        # They are for the audit trail.
        *("endpoint", "trace_id"),
    }


@pytest.mark.parametrize(
    "change",
    [
        {"background": True},
        {"finished_prompts": True},
        {"request_id": "req_1"},
        {"endpoint": "/v1/moderations"},
        {"trace_id": "1"},
    ],
)
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


# --- From conversations to questions, and from a question to cases ---------------------------------------

SPOKEN = st.lists(st.text("abc", min_size=1, max_size=3).map(TextPart), min_size=1, max_size=12)


def question_of(conversation: Conversation, handling: Handling = ORDINARY, policy: Policy = POLICY) -> Question:
    return QUESTIONS.question(conversation, policy, handling, passes_of(conversation))


@given(st.lists(SPOKEN.map(lambda parts: Conversation.from_user(*parts)), min_size=1, max_size=6), HANDLINGS)
async def test_a_request_is_read_as_one_question_for_each_conversation(
    conversations: list[Conversation], handling: Handling
) -> None:
    questions = await QUESTIONS.read(conversations, POLICY, handling)
    assert [question.conversation for question in questions] == conversations
    assert all(question.policy is POLICY and question.handling is handling for question in questions)
    passes = [passes_of(conversation) for conversation in conversations]
    fewer = len(passes) > 1 and sum(len(each.passes) for each in passes) > MAX_PASSES
    assert [question.passes for question in questions] == [each.joined if fewer else each for each in passes]
    for question, each in zip(questions, passes, strict=True):
        joined = question.passes != each
        assert question.key == QUESTIONS.key(question.conversation, POLICY, handling, joined=joined)


async def test_a_question_is_one_value() -> None:
    (question,) = await QUESTIONS.read([HELLO], POLICY, ORDINARY)
    assert question == question_of(HELLO)
    with pytest.raises(AttributeError):
        question.policy = replace(POLICY, threshold=0.1)  # type: ignore[misc]


async def test_what_may_change_is_never_the_same_question() -> None:
    fetched = Conversation.from_user(ImagePart("https://example.com/a.png"))
    one, other = await QUESTIONS.read([fetched, fetched], POLICY, ORDINARY)
    assert isinstance(one.key, AskedOnce)
    assert one.key != other.key


@given(ALL)
def test_a_case_has_all_of_its_question(asked: tuple[Conversation, Policy, Handling]) -> None:
    conversation, policy, handling = asked
    spoken = conversation.without_images()
    question = QUESTIONS.question(conversation, policy, handling, passes_of(HELLO))
    case = question.case(Pass(spoken), {}, 12.5)
    assert case == Case(spoken, (), policy, handling)
    assert case.deadline == 12.5


def decoded(*colours: str) -> DecodedImage:
    return DecodedImage(tuple(Image.new("RGB", (1, 1), colour) for colour in colours), len(colours), "PNG")


def test_a_case_shows_every_frame_where_its_pass_shows_the_picture() -> None:
    one, two = ImagePart("data:one"), ImagePart("data:two")
    question = question_of(Conversation.from_user(TextPart("x"), one, two))
    pictures = {one: decoded("red", "green"), two: decoded("blue")}
    case = question.case(Pass(Conversation.from_user(two, one, TextPart("x"))), pictures, 1.0)
    assert case.conversation.images == (two, one, one)
    assert [image.getpixel((0, 0)) for image in case.images] == [(0, 0, 255), (255, 0, 0), (0, 128, 0)]


@pytest_asyncio.fixture
async def verdict() -> Verdict:
    moderator = Moderator(FakeBackend(), ImageDecoder(ImageLimits(), SIZES), POLICY)
    try:
        return await moderator.moderate(HELLO)
    finally:
        moderator.close()


async def test_the_deciding_text_bears_the_name_that_this_request_gave_it(verdict: Verdict) -> None:
    conversation = Conversation.from_user(TextPart("a", "input[0]"), TextPart("bomb", "input[1]"))
    question = question_of(conversation)
    assert question.told(verdict) is verdict, "of one pass"
    for decided, about in ((0, None), (1, About("input[0]")), (2, About("input[1]"))):
        assert question.told(replace(verdict, passes=3, decided=decided)).about == about


async def test_the_event_of_a_verdict_says_whose_question_it_was(verdict: Verdict) -> None:
    question = question_of(HELLO, Handling(tenant="key_1", request_id="req_1"))
    event = question.judged(verdict, 0.5)
    assert (event.verdict, event.judged, event.seconds) == (verdict, Role.USER, 0.5)
    assert (event.request_id, event.caller) == ("req_1", "key_1")
