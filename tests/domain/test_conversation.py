"""Messages of every role and order become turns, and nothing that was sent is lost."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from server.domain.conversation import (
    OPERATOR_ROLES,
    ROLES,
    Conversation,
    ImagePart,
    Message,
    Part,
    Role,
    TextPart,
    Turn,
    says_something,
)
from server.domain.errors import InvalidRequest, NothingToJudge

TABLE = Path(__file__).parents[2] / "docs" / "prompt.md"

USER, AGENT = Role.USER, Role.AGENT

# A busy machine is no reason to fail.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def say(role: str, *parts: str | ImagePart) -> Message:
    return Message(role, tuple(TextPart(part) if isinstance(part, str) else part for part in parts))


def image(name: str) -> ImagePart:
    return ImagePart(f"data:image/png;base64,{name}")


def turns_of(*messages: Message) -> list[tuple[Role, tuple[Part, ...]]]:
    return [(turn.role, turn.parts) for turn in Conversation.from_messages(messages).turns]


# --- The table in the documentation ----------------------------------------------------------------------


def documented() -> dict[tuple[str, ...], tuple[str, ...] | None]:
    """Orders of roles to the turns that they become, None where they are refused, as docs/prompt.md says it."""
    section = TABLE.read_text(encoding="utf-8").partition("## Roles and orders")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| `")]
    code = re.compile(r"`(\w+)`")
    return {tuple(code.findall(sent)): tuple(code.findall(turns)) or None for sent, turns in rows}


def test_every_role_is_documented_alone():
    alone = {roles[0]: turns for roles, turns in documented().items() if len(roles) == 1 and turns is not None}
    assert {role: turns[-1] for role, turns in alone.items()} == {
        role: side.capitalize() for role, side in ROLES.items()
    }


@pytest.mark.parametrize("sent", documented(), ids=" ".join)
def test_table_holds(sent):
    expected = documented()[sent]
    messages = [say(role, f"text {index}") for index, role in enumerate(sent)]
    if expected is None:
        with pytest.raises(InvalidRequest):
            Conversation.from_messages(messages)
    else:
        conversation = Conversation.from_messages(messages)
        assert tuple(turn.role.capitalize() for turn in conversation.turns) == expected
        assert conversation.judged.capitalize() == expected[-1]


# --- Orders, one by one ----------------------------------------------------------------------------------


def test_neighbours_on_one_side_become_one_turn():
    assert turns_of(say("system", "a", image("1")), say("user", "b"), say("tool", image("2"))) == [
        (USER, (TextPart("a", operator=True), replace(image("1"), operator=True), TextPart("b"), image("2")))
    ]


def test_assistant_first_gets_an_empty_user_turn_before_it():
    assert turns_of(say("assistant", "a"), say("assistant", "b")) == [
        (USER, ()),
        (AGENT, (TextPart("a"), TextPart("b"))),
    ]


@pytest.mark.parametrize("nothing", [(), ("",), (" \n", "\u200b\u2800")])
def test_a_message_that_says_nothing_vanishes(nothing):
    """It would part two messages of one speaker, and leave the first one unjudged."""
    assert turns_of(say("user", "a"), say("assistant", *nothing), say("user", *nothing), say("user", "b")) == [
        (USER, (TextPart("a"), TextPart("b"))),
    ]


@pytest.mark.parametrize("role", ["system", "developer"])
def test_what_the_operator_says_is_marked(role):
    (turn,) = Conversation.from_messages([say(role, "a", image("1")), say("user", "b")]).turns
    assert [part.operator for part in turn.parts] == [True, True, False]


def test_a_single_image_can_be_judged():
    conversation = Conversation.from_user(image("1"))
    assert conversation.images == (image("1"),)
    assert conversation.turns[0].texts == ()


def test_empty_words_beside_an_image_vanish():
    assert Conversation.from_user(TextPart(""), image("1")).turns == (Turn(USER, (image("1"),)),)


NOTHING: dict[str, list[Message]] = {
    "no message": [],
    "no part": [say("user")],
    "an empty text": [say("user", "")],
    "white space": [say("user", " \n\t", "\u3000\u00a0")],
    "zero-width characters": [say("user", "\u200b\u200d\u2060\ufeff\u00ad")],
    "blanks that are letters or symbols": [say("user", "\u2800\u3164\u115f\u1160\uffa0\U0001d159")],
    "variation selectors and tags": [say("user", "\ufe0f\U000e0100\U000e0041\U000e007f")],
    "control characters": [say("user", "\0\x07\x7f\u0085")],
    "directions": [say("user", "\u202e\u2066\u200f")],
    "an empty answer": [say("user", "hi"), say("assistant", "")],
    "an empty question beside a system prompt": [say("system", "be kind"), say("user", " ")],
    "an empty question before a system prompt": [say("user", "\u200b"), say("developer", "be kind")],
    "an empty question behind an answer and a system prompt": [
        *(say("user", "hi"), say("assistant", "ho"), say("system", "be kind"), say("user", "")),
    ],
    "an empty answer to an image": [say("user", image("1")), say("assistant")],
    "an empty answer that comes first": [say("assistant")],
    "an empty question after an answer": [say("user", "hi"), say("assistant", "ho"), say("user", "  ")],
}


@pytest.mark.parametrize("messages", NOTHING.values(), ids=NOTHING)
def test_nothing_to_judge(messages):
    with pytest.raises(NothingToJudge) as caught:
        Conversation.from_messages(messages)
    assert caught.value.param == "messages"
    assert caught.value.code == "empty_input"


def test_earlier_turns_may_be_empty():
    assert Conversation.from_messages([say("user", ""), say("assistant", "hi")]).judged is AGENT


UNKNOWN = ["", "User", "USER", "user ", "agent", "ipython", "model", "critic", "assistant\n", "ｕser"]


@pytest.mark.parametrize("role", UNKNOWN)
def test_unknown_role_is_refused_by_its_place_and_not_repeated(role):
    with pytest.raises(InvalidRequest) as caught:
        Conversation.from_messages([say("user", "hi"), say(role, "hi")])
    assert caught.value.param == "messages[1].role"
    assert caught.value.message == f"Unknown role. Known roles are: {', '.join(ROLES)}."


def test_unknown_role_is_refused_even_when_empty():
    with pytest.raises(InvalidRequest) as caught:
        Conversation.from_messages([say("narrator"), say("user", "hi")])
    assert caught.value.param == "messages[0].role"


# --- What holds for all ----------------------------------------------------------------------------------

parts = st.one_of(st.text(max_size=5).map(TextPart), st.integers(0, 9).map(lambda number: image(str(number))))
messages_of_any_order = st.lists(
    st.builds(Message, st.sampled_from(sorted(ROLES)), st.lists(parts, max_size=4).map(tuple)), max_size=8
)


def shows(part: Part) -> bool:
    return isinstance(part, ImagePart) or says_something(part.text)


def fold(messages: list[Message]) -> Conversation:
    try:
        return Conversation.from_messages(messages)
    except NothingToJudge:
        assume(False)
        raise


@unhurried
@given(messages_of_any_order)
def test_nothing_is_lost(messages):
    sent = [(ROLES[message.role], part) for message in messages for part in message.parts if shows(part)]
    turns = fold(messages).turns
    assert [(turn.role, replace(part, operator=False)) for turn in turns for part in turn.parts] == sent


@unhurried
@given(messages_of_any_order)
def test_turns_alternate_and_the_last_message_is_judged(messages):
    conversation = fold(messages)
    roles = [turn.role for turn in conversation.turns]
    assert roles == [(USER, AGENT)[index % 2] for index in range(len(roles))]
    assert conversation.judged is ROLES[messages[-1].role]
    last = conversation.turns[-1]
    assert last.parts
    assert all(shows(part) for part in last.parts)


@unhurried
@given(messages_of_any_order)
def test_refused_only_when_the_judged_turn_is_blank(messages):
    try:
        Conversation.from_messages(messages)
    except NothingToJudge:
        last = messages[-1:]
        if last and last[0].role not in OPERATOR_ROLES:
            assert not any(shows(part) for one in last for part in one.parts)


@unhurried
@given(messages_of_any_order)
def test_texts_and_images_are_told_apart(messages):
    conversation = fold(messages)
    sent = [part for message in messages for part in message.parts if shows(part)]
    assert [text for turn in conversation.turns for text in turn.texts] == [
        part.text for part in sent if isinstance(part, TextPart)
    ]
    images = [replace(part, operator=False) for part in conversation.images]
    assert images == [part for part in sent if isinstance(part, ImagePart)]


def test_folding_takes_time_in_proportion():
    """200,000 messages of one side: folding by copying what came before would take minutes."""
    count = 200_000
    (turn,) = Conversation.from_messages([say("user", "x")] * count).turns
    assert len(turn.parts) == count


# --- Frames ----------------------------------------------------------------------------------------------


def test_frames_repeat_their_image_in_its_place():
    conversation = Conversation.from_messages(
        [say("user", image("1"), "a", image("2")), say("assistant", "b"), say("user", image("3"), "c")]
    )
    seen = conversation.with_frames([3, 1, 2])
    assert [(turn.role, turn.parts) for turn in seen.turns] == [
        (USER, (image("1"), image("1"), image("1"), TextPart("a"), image("2"))),
        (AGENT, (TextPart("b"),)),
        (USER, (image("3"), image("3"), TextPart("c"))),
    ]
    assert len(seen.images) == 6


def test_one_frame_each_changes_nothing():
    conversation = Conversation.from_user(image("1"), TextPart("a"), image("2"))
    assert conversation.with_frames([1, 1]) == conversation


def test_text_alone_has_no_frames():
    conversation = Conversation.from_user(TextPart("a"))
    assert conversation.with_frames([]) == conversation


@pytest.mark.parametrize("counts", [[], [1], [1, 1, 1], [0, 1], [1, 0], [2, -1]], ids=str)
def test_no_image_goes_unseen(counts):
    """Counts that do not fit the images mean that a picture would be judged without being looked at."""
    with pytest.raises(ValueError, match="frame"):
        Conversation.from_user(image("1"), image("2")).with_frames(counts)
