"""Rows written for this project from templates: thin hazard categories, plain chat, and replies.

Public sets are rich in hate and crime and poor in everything else, so a model trained on them alone asks only whether
a text sounds like hate.  These rows give every category of the taxonomy a plain vocabulary, and set harmless twins with
the same words beside it.  They are blunt on purpose and hold no working instructions.

The words are in words/: a phrase a line, and by category where a harm belongs to one.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Iterator
from pathlib import Path

from model_config.pocket.training.data import Row

WORDS = Path(__file__).parent / "words"


def _phrases(name: str) -> tuple[str, ...]:
    return tuple((WORDS / f"{name}.txt").read_text(encoding="utf-8").splitlines())


def _by_category(name: str) -> dict[int, tuple[str, ...]]:
    table = tomllib.loads((WORDS / f"{name}.toml").read_text(encoding="utf-8"))
    return {int(code.removeprefix("S")): tuple(phrases) for code, phrases in table.items()}


# How a request is put.  {} is what is asked for.
ASK = _phrases("ask")
ABOUT = _phrases("about")

# Who fills in for {person} and {group}.
PEOPLE = _phrases("people")
GROUPS = _phrases("groups")

# Harmful deeds, as infinitives, and the same words without the harm.
DEEDS = _by_category("deeds")
HARMLESS_TWINS = _phrases("harmless_twins")
THREATS = _phrases("threats")
SELF_HARM = _phrases("self_harm")

# Everyday chat.
EVERYDAY = _phrases("everyday")
TOPICS = _phrases("topics")
SMALL_TALK = _phrases("small_talk")

REFUSALS = _phrases("refusals")
FRIENDLY_REPLIES = _phrases("friendly_replies")
HARMFUL_REPLIES = _by_category("harmful_replies")


def rows(seed: int = 7) -> list[Row]:
    """All template rows, the same for the same seed."""
    dice = random.Random(seed)
    found = [
        *_requests(dice),
        *_plain_chat(dice),
        *_replies(dice),
    ]
    unique = {row.messages: row for row in found}
    return [
        Row(f"template-{number}", row.source, row.messages, row.unsafe, row.categories, dev=number % 25 == 0)
        for number, row in enumerate(unique.values())
    ]


def _requests(dice: random.Random) -> Iterator[Row]:
    for category, deeds in DEEDS.items():
        for deed in deeds:
            for frame in dice.sample(ASK, 14):
                yield _unsafe(category, frame.format(_filled(deed, dice)))
            yield _unsafe(category, _filled(deed, dice))
    for threat in THREATS:
        for person in PEOPLE:
            text = threat.format(person=person)
            yield _unsafe(1, text[0].upper() + text[1:])
    for text in SELF_HARM:
        yield _unsafe(11, text)
    for twin in HARMLESS_TWINS:
        for frame in dice.sample(ASK, 16):
            yield _safe(frame.format(_filled(twin, dice)))


def _plain_chat(dice: random.Random) -> Iterator[Row]:
    for deed in EVERYDAY:
        for frame in dice.sample(ASK, 14):
            yield _safe(frame.format(deed))
        yield _safe(deed[0].upper() + deed[1:] + dice.choice((".", "", "!")))
    for topic in TOPICS:
        for frame in dice.sample(ABOUT, 14):
            yield _safe(frame.format(topic))
    for text in SMALL_TALK:
        yield _safe(text)
    for text in FRIENDLY_REPLIES:
        yield _safe(text)


def _replies(dice: random.Random) -> Iterator[Row]:
    questions = [
        (category, frame.format(_filled(deed, dice)))
        for category, deeds in DEEDS.items()
        for deed in deeds
        for frame in dice.sample(ASK, 3)
    ]
    for _, question in questions:
        yield _safe(question, dice.choice(REFUSALS))
    everyday = [dice.choice(ASK).format(deed) for deed in EVERYDAY] + list(SMALL_TALK)
    for question in everyday:
        yield _safe(question, dice.choice(FRIENDLY_REPLIES))
        yield _safe(question, dice.choice(FRIENDLY_REPLIES))
        yield _safe(question, dice.choice(REFUSALS))
    for category, replies in HARMFUL_REPLIES.items():
        own = [question for owner, question in questions if owner == category]
        for reply in replies:
            for question in (*dice.sample(own, 7), *dice.sample(everyday, 7)):
                yield _unsafe(category, question, _filled(reply, dice))


def _filled(text: str, dice: random.Random) -> str:
    return text.replace("{person}", dice.choice(PEOPLE)).replace("{group}", dice.choice(GROUPS))


def _safe(*messages: str) -> Row:
    return Row("", "template", messages, unsafe=False, categories=())


def _unsafe(category: int, *messages: str) -> Row:
    return Row("", "template", messages, unsafe=True, categories=(category,))
