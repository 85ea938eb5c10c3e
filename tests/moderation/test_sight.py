"""Pictures that the served model does not see: refused, or left out of a verdict that says so."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.backends.base import Case
from server.backends.fallback import FallbackBackend
from server.backends.openrouter.backend import OpenRouterBackend
from server.checkpoints.profile import load_profile
from server.domain.conversation import Conversation, ImagePart, Message, Part, TextPart
from server.domain.errors import ImagesUnseen, TooManyImages
from server.domain.policy import Policy
from server.domain.verdict import Verdict, judge
from server.moderation.judges import judges_of, sight_of
from server.moderation.sight import Sight
from server.settings import Settings
from tests.fakes import FakeBackend, completion
from tests.readings import FAMILY

GUARD, POCKET = load_profile("llama-guard-4-12b"), load_profile("pocket")
TEXT_ONLY = load_profile("llama-guard-4-12b:text-only")

SEES = Sight("guard", sees=True, takes=True, limit=5)
REFUSES = Sight("pocket", sees=False, takes=True, limit=5)
JUDGES_TEXT = replace(REFUSES, judge_text=True)
TAKES_NONE = Sight("guard", sees=False, takes=False, limit=0, judge_text=True)

PARTS: list[Part] = [TextPart("bread"), TextPart(" \n"), TextPart(""), ImagePart("data:")]
parts = st.lists(st.sampled_from(PARTS), max_size=4)
messages = st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), parts), max_size=4)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    before = [Message(role, tuple(content)) for role, content in draw(messages)]
    last = draw(parts.filter(lambda content: any(isinstance(p, ImagePart) or p.text.strip() for p in content)))
    return Conversation.from_messages([*before, Message(draw(st.sampled_from(["user", "assistant"])), tuple(last))])


def verdict_on(conversation: Conversation, backend: str = "fake") -> Verdict:
    policy = Policy(GUARD.taxonomy)
    return judge(completion(Case(conversation, (), policy), "safe", backend=backend), policy)


@given(conversations())
def test_no_conversation_of_pictures_alone_is_ever_judged_by_a_model_that_does_not_see(
    conversation: Conversation,
) -> None:
    for sight in (REFUSES, JUDGES_TEXT, TAKES_NONE):
        # What an operator says beside a picture is context, and no text that is judged.
        said = [part for part in conversation.turns[-1].parts if isinstance(part, TextPart) and not part.operator]
        alone = all(part.operator for part in conversation.turns[-1].parts)
        refused = not sight.judge_text or not (said or (alone and conversation.turns[-1].texts))
        too_many = sight.judge_text and len(conversation.images) > sight.limit > 0
        if conversation.images and refused and not too_many:
            with pytest.raises(ImagesUnseen, match="GUARD_UNSEEN_IMAGES=judge_text") as told:
                sight.admit(conversation)
            assert told.value.param == "image_url"
        else:
            admitted = sight.admit(conversation)
            assert any(text.strip() for text in admitted.turns[-1].texts) or len(conversation.images) > sight.limit > 0
            assert not (conversation.images and sight is REFUSES)


@given(conversations())
def test_texts_and_speakers_stay_whatever_becomes_of_the_pictures(conversation: Conversation) -> None:
    assert SEES.admit(conversation) is conversation
    for sight in (JUDGES_TEXT, TAKES_NONE):
        try:
            admitted = sight.admit(conversation)
        except ImagesUnseen:
            continue
        assert [(turn.role, turn.texts) for turn in admitted.turns] == [
            (turn.role, turn.texts) for turn in conversation.turns
        ]
        assert admitted.images == (conversation.images if sight.takes else ())


@given(conversations())
def test_a_verdict_tells_of_every_picture_that_nobody_saw(conversation: Conversation) -> None:
    verdict = verdict_on(conversation)
    assert SEES.tell(verdict, conversation) is verdict
    for sight in (JUDGES_TEXT, TAKES_NONE):
        assert sight.tell(verdict, conversation).images_unseen == len(conversation.images)


@pytest.mark.parametrize(
    "said",
    [
        [("system", TextPart("You are kind.")), ("user", ImagePart("data:"))],
        [("user", TextPart("Draw it.")), ("assistant", ImagePart("data:")), ("system", TextPart("You are kind."))],
        [("user", TextPart("Draw it.")), ("assistant", ImagePart("data:"))],
    ],
    ids=["beside the operator's words", "before the operator's words", "as an answer"],
)
@pytest.mark.parametrize("sight", [JUDGES_TEXT, TAKES_NONE], ids=["shown", "not shown"])
def test_other_peoples_words_do_not_stand_for_a_picture(sight: Sight, said: list[tuple[str, Part]]) -> None:
    conversation = Conversation.from_messages([Message(role, (part,)) for role, part in said])
    with pytest.raises(ImagesUnseen):
        sight.admit(conversation)


def test_more_pictures_than_a_request_may_hold_are_left_to_the_bound_on_them() -> None:
    many = Conversation.from_user(*[ImagePart("data:")] * 6)
    assert JUDGES_TEXT.admit(many) is many
    with pytest.raises(ImagesUnseen):
        TAKES_NONE.admit(many)


def test_a_remote_model_behind_the_engine_sees_what_it_judges() -> None:
    seen_there = replace(JUDGES_TEXT, seeing=frozenset({"openrouter"}))
    asked = Conversation.from_user(ImagePart("data:"), TextPart("bread"))
    assert seen_there.tell(verdict_on(asked, "openrouter"), asked).images_unseen == 0
    assert seen_there.tell(verdict_on(asked, "vllm"), asked).images_unseen == 1
    stripped = replace(seen_there, takes=False)
    assert stripped.tell(verdict_on(asked, "openrouter"), asked).images_unseen == 1


def test_an_image_that_is_not_seen_is_one_too_many() -> None:
    """Callers that know the older error go on."""
    assert issubclass(ImagesUnseen, TooManyImages)


# --- Who judges ------------------------------------------------------------------------------------------


class Remote(FakeBackend):
    name = "openrouter"


REMOTE: dict[str, Any] = {"backend": "openrouter", "openrouter_api_key": "sk-or-canary"}


@pytest.mark.parametrize(
    ("profile", "backend", "sees", "takes"),
    [
        (GUARD, FakeBackend, True, True),
        (POCKET, FakeBackend, False, True),
        (TEXT_ONLY, FakeBackend, False, False),
        (GUARD, Remote, True, True),
        (POCKET, Remote, True, True),
        (TEXT_ONLY, Remote, False, False),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_who_sees_is_the_model_that_judges(profile, backend, sees, takes):
    settings = Settings(**(REMOTE if backend is Remote else {}), max_images=4)
    sight = sight_of(settings, profile, backend())
    assert (sight.sees, sight.takes, sight.limit) == (sees, takes, 4 if takes else 0)


def test_a_remote_model_goes_by_its_own_name_and_is_no_stand_in():
    (judge,) = judges_of(Settings(**REMOTE), POCKET, Remote())
    assert (judge.model, judge.backend, judge.stand_in) == ("meta-llama/llama-guard-4-12b", "openrouter", False)
    (judge,) = judges_of(Settings(), POCKET, FakeBackend())
    assert (judge.model, judge.profile, judge.stand_in) == ("llama-guard-pocket", "pocket", True)


def test_behind_a_stand_in_the_remote_is_told_beside_it_and_sees_for_itself():
    settings = Settings(fallback="openrouter", openrouter_api_key="k", unseen_images="judge_text")
    remote = OpenRouterBackend(settings, POCKET.taxonomy, FAMILY)
    both = FallbackBackend(FakeBackend(), remote, after_s=1, places=4, context_tokens=8192)
    told = [(judge.model, judge.backend, judge.stand_in) for judge in judges_of(settings, POCKET, both)]
    assert told == [
        ("llama-guard-pocket", "fake", True),
        ("meta-llama/llama-guard-4-12b", "openrouter", False),
    ]
    sight = sight_of(settings, POCKET, both)
    assert (sight.sees, sight.judge_text, sight.seeing) == (False, True, frozenset({"openrouter"}))
