"""A guardrail's request as conversations to judge: all of it, in no more conversations than one request may have."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import takewhile

from server.api.litellm.body import GuardrailRequest
from server.api.litellm.messages import payload, read_call, read_message, url_of
from server.domain.conversation import (
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
from server.moderation.passes import MAX_PASSES

_SPEAKERS = {Role.USER: "user", Role.AGENT: "assistant"}

RECENT_TURNS = 16
"""The number of last turns that are judged one by one in a request of more than MAX_PASSES texts."""

GROUPS = (MAX_PASSES - RECENT_TURNS) // 4
"""The number of messages into which a speaker's earlier turns are joined then. Texts outside of turns get as many."""


def conversations_of(body: GuardrailRequest, most: int) -> list[Conversation]:
    """Everything in `body`, as at most MAX_PASSES conversations.

    Raises NothingToJudge, and InvalidRequest for more than `most` turns and texts.
    """
    messages = [read_message(message, index) for index, message in enumerate(body.structured_messages or ())]
    kept = [message for message in messages if _says_something(message.parts)]
    turns = Conversation.from_messages(kept).turns if kept else ()
    others = _in_no_turn(body, messages, turns)
    if not turns and not others:
        raise NothingToJudge("There is nothing to judge. Send a text or an image.", param="texts")
    if len(turns) + len(others) > most:
        raise InvalidRequest(
            f"The request has more than {most} texts. Send fewer. The operator sets the limit with GUARD_MAX_LIST.",
            param="texts",
        )
    first, joined = 0, list[Message]()
    if len(turns) + len(others) > MAX_PASSES:
        first = max(0, len(turns) - RECENT_TURNS)
        said = [Message(_SPEAKERS[turn.role], _asked_about(turn)) for turn in turns[:first] if turn.parts]
        joined = [group for speaker in _SPEAKERS.values() for group in _in_groups(said, speaker)]
        others = [group for speaker in _SPEAKERS.values() for group in _in_groups(others, speaker)]
    # An assistant's texts are judged as answers to the conversation before them.
    context = turns if body.input_type == "response" else ()
    conversations = [Conversation.from_messages([message]) for message in joined]
    # Each turn is judged here anyway, so an operator's turn need not have the model's turn before it judged again.
    conversations += [
        Conversation((*turns[:end], Turn(turns[end].role, _asked_about(turns[end]))))
        for end in range(first, len(turns))
        if turns[end].parts
    ]
    conversations += [_answer(context, message) for message in others]
    return conversations


def _answer(context: tuple[Turn, ...], message: Message) -> Conversation:
    """`message` after `context`. The texts of `context` are not read again, since many answers may follow it."""
    (*empty, turn) = Conversation.from_messages([message]).turns
    if not context:
        return Conversation((*empty, turn))
    if context[-1].role is turn.role:
        return Conversation((*context[:-1], Turn(turn.role, (*context[-1].parts, *turn.parts))))
    return Conversation((*context, turn))


def _asked_about(turn: Turn) -> tuple[Part, ...]:
    """The parts of a turn. If all of them are the operator's they are judged, so they are no longer marked as his."""
    alone = all(part.operator for part in turn.parts)
    return tuple(replace(part, operator=False) for part in turn.parts) if alone else turn.parts


def _in_groups(messages: Sequence[Message], speaker: str) -> Iterator[Message]:
    """The parts of `speaker` in `messages`, in order, as at most GROUPS messages of about the same length."""
    said = [message.parts for message in messages if message.role == speaker]
    size = -(-len(said) // GROUPS)
    for start in range(0, len(said), size or 1):
        yield Message(speaker, tuple(part for parts in said[start : start + size] for part in parts))


def _in_no_turn(body: GuardrailRequest, messages: Sequence[Message], turns: Sequence[Turn]) -> list[Message]:
    """Everything to judge that is not already in `turns`, which were folded from `messages`."""
    # Of a response, only the last answer counts as judged: the same words earlier answered something else.
    known = messages if body.input_type == "request" else _last_answer(messages)
    by_agent = {part.text for one in known if ROLES[one.role] is Role.AGENT for part in _texts(one.parts)}
    asked, told = by_agent, Counter[str]()
    if body.input_type == "request":
        asked = {part.text for turn in turns for part in _texts(turn.asked)}
        told = Counter(part.text for turn in turns for part in _texts(turn.parts) if part.operator)
    texts = list[TextPart]()
    for index, text in enumerate(body.texts or ()):
        # An operator's words are context. If a text occurs more often than the operator said it, the rest is judged.
        if text in told and text not in asked and told[text] > 0:
            told[text] -= 1
        elif text not in asked:
            texts.append(TextPart(text, f"texts[{index}]"))
    shown = {payload(part.url) for message in known for part in message.parts if isinstance(part, ImagePart)}
    images = [
        ImagePart(url_of(image), f"images[{index}]")
        for index, image in enumerate(body.images or ())
        if payload(image) not in shown
    ]
    calls = [
        part for index, call in enumerate(body.tool_calls or ()) for part in read_call(call, f"tool_calls[{index}]")
    ]
    speaker = "user" if body.input_type == "request" else "assistant"
    found = [Message(speaker, (*texts, *images))] if images else [Message(speaker, (text,)) for text in texts]
    found.append(Message("assistant", tuple(call for call in calls if call.text not in by_agent)))
    return [message for message in found if _says_something(message.parts)]


def _texts(parts: Iterable[Part]) -> Iterator[TextPart]:
    return (part for part in parts if isinstance(part, TextPart))


def _last_answer(messages: Sequence[Message]) -> Sequence[Message]:
    """The assistant's messages at the end. They are judged as the answer."""
    return list(takewhile(lambda message: ROLES[message.role] is Role.AGENT, reversed(messages)))


def _says_something(parts: Iterable[Part]) -> bool:
    return any(isinstance(part, ImagePart) or says_something(part.text) for part in parts)
