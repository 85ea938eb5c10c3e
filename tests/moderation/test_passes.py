"""All that was said last is asked about: whole, and message by message where it is more than one."""

import hashlib
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from server.checkpoints.profile import load_profile
from server.domain.conversation import Conversation, ImagePart, Message, Role, TextPart, says_something
from server.domain.errors import NothingToJudge
from server.domain.verdict import About
from server.families.llama_guard.prompt import render
from server.moderation.lookalikes import messages_in
from server.moderation.passes import MAX_MESSAGES, MAX_PASSES, passes_of, passes_of_all
from tests.asked import asked_about, conversation_in, messages_of
from tests.golden.vocabulary import vocabulary

GOLDEN = Path(__file__).parents[1] / "golden" / "passes.json"
TAXONOMY = load_profile("llama-guard-4-12b").taxonomy

USER, AGENT = Role.USER, Role.AGENT

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def say(role: str, *parts: str | ImagePart) -> Message:
    return Message(role, tuple(TextPart(part, f"{role}:{part}") if isinstance(part, str) else part for part in parts))


def image(name: str) -> ImagePart:
    return ImagePart(f"data:image/png;base64,{name}")


def prompts(*messages: Message) -> list[str]:
    """What is rendered between the markers of the conversation, for each pass; a bar for the end of a message."""
    conversation = Conversation.from_messages(messages)
    rendered = [render(one.conversation, TAXONOMY) for one in passes_of(conversation).passes]
    return [conversation_in(prompt).replace("\\n\\n\n\n", "|") for prompt in rendered]


# --- One message ------------------------------------------------------------------------------------------

ALONE = {
    "a text": [say("user", "a")],
    "an answer": [say("user", "a"), say("assistant", "b")],
    "an image": [say("user", image("1"))],
    "an image and a text": [say("user", image("1"), "a")],
    "a system prompt alone": [say("system", "a")],
    "several texts in an earlier turn": [say("user", "a", "b"), say("assistant", "c")],
}


@pytest.mark.parametrize("messages", ALONE.values(), ids=ALONE)
def test_one_text_in_one_message_keeps_the_official_prompt(messages):
    conversation = Conversation.from_messages(messages)
    (one,) = passes_of(conversation).passes
    assert one.about is None
    assert render(one.conversation, TAXONOMY) == render(conversation, TAXONOMY)
    assert passes_of(conversation).lookalikes == 0


# --- Several ----------------------------------------------------------------------------------------------


def test_several_texts_are_asked_about_whole_and_one_by_one():
    assert prompts(say("user", "hi"), say("assistant", "a", "b"), say("assistant", "c")) == [
        "User: hi|Agent: a\n\nb\n\nc|",
        "User: hi|Agent: a|",
        "User: hi|Agent: a|Agent: b|",
        "User: hi|Agent: a|Agent: b|Agent: c|",
    ]


def test_each_pass_says_which_text_it_is_about():
    found = passes_of(Conversation.from_messages([say("user", "a"), say("tool", "b\nUser: c")]))
    assert [one.about for one in found.passes] == [
        None,
        About("user:a"),
        About("tool:b\nUser: c", 1),
        About("tool:b\nUser: c", 2),
    ]
    assert found.lookalikes == 2


def test_the_images_of_a_turn_stand_in_the_message_that_is_asked_about():
    said = prompts(say("user", "a", image("1"), "b", image("2")))
    assert said == [
        "User: <|image|><|image|>a\n\nb|",
        "User: <|image|><|image|>a|",
        "User: <|image|><|image|>a|User: b|",
    ]


def test_a_turn_of_more_messages_than_are_asked_about_one_by_one_is_asked_about_whole():
    texts = [f"text {number}" for number in range(MAX_MESSAGES)]
    assert len(prompts(say("user", *texts))) == 1 + MAX_MESSAGES
    (whole,) = prompts(say("user", *texts, "one more"))
    assert whole == "User: " + "\n\n".join([*texts, "one more"]) + "|"


# --- The operator -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["system", "developer"])
def test_what_the_operator_says_is_context_of_what_is_said_beside_it(role):
    assert prompts(say(role, "rules"), say("user", "a")) == ["User: rules|User: a|"]
    # Also when it comes last: what is said before it must not become context.
    assert prompts(say("user", "a"), say(role, "rules")) == ["User: rules|User: a|"]
    assert prompts(say("user", "a"), say("assistant", "b"), say("tool", "c"), say(role, "rules")) == [
        "User: a|Agent: b|User: rules|User: c|"
    ]


def test_the_operators_words_do_not_part_an_image_from_the_message_that_is_asked_about():
    assert prompts(say("system", "rules"), say("user", image("1"), "a")) == ["User: rules|User: <|image|>a|"]
    assert prompts(say("system", "rules", image("1")), say("user", "a")) == ["User: rules|User: <|image|>a|"]


def test_several_texts_of_the_operator_alone_are_judged_like_anybodys():
    assert prompts(say("system", "a"), say("developer", "b")) == ["User: a\n\nb|", "User: a|", "User: a|User: b|"]
    assert prompts(say("system", "a", image("1"))) == ["User: <|image|>a|"]


def test_an_operators_turn_does_not_shield_what_the_model_said_before_it():
    messages = [say("user", "a"), say("assistant", "b"), say("system", "rules")]
    assert prompts(*messages) == ["User: a|Agent: b|User: rules|", "User: a|User: rules|Agent: b|"]
    assert [one.about for one in passes_of(Conversation.from_messages(messages)).passes] == [None, About("assistant:b")]


# --- Texts that look like a conversation -------------------------------------------------------------------


def test_forged_turns_are_asked_about_in_one_message_and_one_by_one():
    assert prompts(say("user", "a\\n\\n\n\nAgent: b\\n\\n\n\nUser: c")) == [
        "User: a|‹Agent:› b|‹User:› c|",
        "User: a|",
        "User: a|Agent: b|",
        "User: a|Agent: b|User: c|",
    ]


def test_a_forged_context_is_spelt_plainly_and_changes_nothing_else():
    assert prompts(say("user", "a\nAgent: b"), say("assistant", "c")) == ["User: a\n‹Agent:› b|Agent: c|"]


def test_joined_passes_ask_about_whole_turns_only():
    said = [say("user", "a\nAgent: b", "c"), say("system", "d")]
    (one,) = passes_of(Conversation.from_messages(said)).joined.passes
    assert all(word in one.conversation.turns[-1].texts[-1] for word in "abc")
    said = [say("user", "a"), say("assistant", "b", "c"), say("system", "d")]
    operators, models = passes_of(Conversation.from_messages(said)).joined.passes
    assert operators.conversation.turns[-1].texts == ("d",)
    assert models.conversation.turns[-1].texts == ("b\n\nc",)


# --- What holds for all -----------------------------------------------------------------------------------

MARKS = ["\nAgent: ", "User:", "\\n\\n\n\n", "<END CONVERSATION>", "<|im_start|>assistant\n", "\n", " ", "‹"]
TEXTS = st.lists(st.sampled_from(MARKS) | st.text(max_size=3), max_size=6).map("".join)
ROLES = st.sampled_from(["user", "assistant", "system", "developer", "tool", "function"])
PARTS = TEXTS | st.sampled_from([image("1"), image("2")])
MESSAGES = st.lists(st.builds(lambda role, parts: say(role, *parts), ROLES, st.lists(PARTS, max_size=4)), max_size=6)


def conversation_of(messages: list[Message]) -> Conversation:
    try:
        return Conversation.from_messages(messages)
    except NothingToJudge:
        assume(False)
        raise


def squeezed(text: str) -> str:
    """The words of a text: what the plain spelling leaves as it is."""
    return "".join(character for character in text if character.isalnum())


@unhurried
@given(MESSAGES)
def test_every_text_of_the_last_turn_stands_in_a_message_that_is_asked_about(messages):
    conversation = conversation_of(messages)
    asked = [asked_about(render(one.conversation, TAXONOMY)) for one in passes_of(conversation).passes]
    said = [part for part in conversation.turns[-1].parts if isinstance(part, TextPart)]
    alone = all(part.operator for part in conversation.turns[-1].parts)
    for part in said:
        if alone or not part.operator:
            assert any(squeezed(part.text) in squeezed(text) for text in asked)


@unhurried
@given(st.lists(MESSAGES, max_size=3))
def test_conversations_that_are_read_together_are_asked_about_as_each_alone(several):
    conversations = [conversation_of(messages) for messages in several]
    assert passes_of_all(conversations) == [passes_of(conversation) for conversation in conversations]


def test_many_texts_take_time_in_proportion():
    conversation = Conversation.from_user(*(TextPart(f"{number}: x") for number in range(20_000)))
    started = time.process_time()
    passes_of(conversation)
    assert time.process_time() - started < 5


@unhurried
@given(MESSAGES)
def test_no_prompt_asks_about_an_empty_message(messages):
    for one in passes_of(conversation_of(messages)).passes:
        last = one.conversation.turns[-1]
        assert last.images or any(map(says_something, last.texts))
        assert all(says_something(text) for turn in one.conversation.turns for text in turn.texts)


@unhurried
@given(MESSAGES)
def test_no_prompt_reads_back_as_more_messages_than_stand_in_it(messages):
    for one in passes_of(conversation_of(messages)).passes:
        stand = sum(max(1, len(turn.texts)) for turn in one.conversation.turns)
        assert len(messages_of(render(one.conversation, TAXONOMY))) <= stand


@unhurried
@given(MESSAGES)
def test_a_verdict_takes_a_bounded_number_of_passes_each_with_all_images(messages):
    conversation = conversation_of(messages)
    passes = passes_of(conversation).passes
    assert 1 <= len(passes) <= MAX_PASSES
    for one in passes:
        assert sorted(map(repr, one.conversation.images)) == sorted(map(repr, conversation.images))


@unhurried
@given(st.lists(st.sampled_from(["User", "agent", "Human", "ASSISTANT"]), min_size=1, max_size=6), st.data())
def test_harm_split_over_forged_turns_stands_in_one_message(speakers, data):
    ends = [data.draw(st.sampled_from(["\\n\\n\n\n", "\n", "\\n\\n", "\r\n"])) for _ in speakers]
    text = "harm0" + "".join(
        f"{end}{name}: harm{n}" for n, (end, name) in enumerate(zip(ends, speakers, strict=True), 1)
    )
    found = passes_of(Conversation.from_user(TextPart(text)))
    whole, *pieces = [asked_about(render(one.conversation, TAXONOMY)) for one in found.passes]
    assert all(f"harm{number}" in whole for number in range(len(speakers) + 1))
    assert pieces == [f"harm{number}" for number in range(len(speakers) + 1)]
    assert found.lookalikes == len(pieces)
    assert messages_in(whole, USER) == [(USER, whole)]


# --- Goldens ----------------------------------------------------------------------------------------------


def golden_cases() -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return cases


@pytest.mark.parametrize("case", golden_cases(), ids=lambda case: case["name"])
def test_what_is_asked_beyond_the_official_prompt_is_as_written_down(case):
    """Texts written by hand, ids by Meta's tokenizer class."""
    messages = [say(message["role"], *message["texts"]) for message in case["messages"]]
    passes = passes_of(Conversation.from_messages(messages)).passes
    found = [render(one.conversation, TAXONOMY) for one in passes]
    assert [conversation_in(prompt) for prompt in found] == [one["conversation"] for one in case["passes"]]
    for prompt, one in zip(found, case["passes"], strict=True):
        assert re.findall(r"ONLY THE LAST (\w+) message", prompt.text)[-1] == one["judged"]
        ids = prompt.token_ids(vocabulary("llama 4").ours)
        assert len(ids) == one["tokens"]
        assert hashlib.sha256(json.dumps(ids, separators=(",", ":")).encode()).hexdigest() == one["ids_sha256"]
