"""A question: a conversation, everything its verdict could depend on, and a key by which equal questions are found."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from server.backends.base import Case
from server.domain.aio import done
from server.domain.caller import Handling
from server.domain.conversation import Conversation, ImagePart, Role, TextPart
from server.domain.errors import ContextLengthExceeded
from server.domain.events import Judged
from server.domain.policy import Policy
from server.domain.verdict import Verdict
from server.images import DecodedImage, scheme_of
from server.moderation.lookalikes import TooManyMarks
from server.moderation.passes import MAX_PASSES, Pass, Passes, Plain, passes_of_all, spelt_once

if TYPE_CHECKING:
    from hashlib import _Hash

LONG_TEXT = 16_384
"""A request of up to this length is read on the event loop, and its passes run together."""

PART = 16
"""The length of each text or image beside its characters: it has a label in the prompt, and to read it takes time."""

SHARE = 262_144
"""The length that is read at a time. Other requests are read in between."""


class AskedOnce:
    """The key of a question that may get another answer next time. It equals no other key."""

    __slots__ = ()


Key: TypeAlias = bytes | AskedOnce


@dataclass(frozen=True, slots=True)
class Question:
    """A conversation, and how it is judged. `Questions` makes it once, and everything else passes it on whole.

    `passes` are the prompts that ask about it. Two questions have equal keys if they are equal and of one tenant.
    """

    conversation: Conversation
    policy: Policy
    handling: Handling
    passes: Passes
    key: Key

    @property
    def is_long(self) -> bool:
        """Whether its passes run one after another, to find their common part in the engine's prefix cache."""
        return _length_of_texts(self.conversation) > LONG_TEXT

    def case(self, asked: Pass, pictures: Mapping[ImagePart, DecodedImage], deadline: float) -> Case:
        """One of its passes, as a backend gets it: with the frames of the pictures in the order of the conversation.

        `deadline` is a time of time.monotonic().
        """
        if not pictures:
            return Case(asked.conversation, (), self.policy, self.handling, deadline)
        shown = [pictures[image] for image in asked.conversation.images]
        conversation = asked.conversation.with_frames([len(picture.frames) for picture in shown])
        frames = [frame for picture in shown for frame in picture.frames]
        return Case(conversation, frames, self.policy, self.handling, deadline)

    def told(self, verdict: Verdict) -> Verdict:
        """`verdict`, with the text that decided it under the name that this request has for its field."""
        if verdict.passes == 1:
            return verdict
        return replace(verdict, about=self.passes.passes[verdict.decided].about)

    def judged(self, verdict: Verdict, seconds: float = 0.0) -> Judged:
        """The event that it has a verdict. `seconds` is the time since admission if the verdict was computed for it."""
        return Judged(verdict, self.conversation.judged, seconds, self.handling.request_id, self.handling.tenant)


class Questions:
    """Turns conversations into questions and makes their keys, which reveal no content."""

    def __init__(
        self, served: str, policy: Policy, max_characters: float = math.inf, most_marks: float = math.inf
    ) -> None:
        """`served` identifies the model and how it is asked. `policy` is the one that most requests use.

        A conversation of more than `max_characters` is refused before it is read, and so is one that has a text with
        more than `most_marks` marks of a conversation.
        """
        self._served = served
        self._policy = policy
        self._max_characters = max_characters
        self._most_marks = most_marks
        self._begun = self._begin(policy)

    def check_length(self, conversation: Conversation) -> None:
        """Raises ContextLengthExceeded for a conversation that is longer than any context."""
        length = sum(len(text) for turn in conversation.turns for text in turn.texts)
        if length > self._max_characters:
            raise ContextLengthExceeded(
                f"The messages have {length} characters. This model's context holds at most"
                f" {self._max_characters}, whatever the text. Please reduce the length of the messages.",
                param="messages",
            )

    async def read(self, conversations: Sequence[Conversation], policy: Policy, handling: Handling) -> list[Question]:
        """One question for each conversation of a request, in order.

        Raises ContextLengthExceeded for a conversation that is longer than any context.
        """
        lengths = [self._length(conversation) for conversation in conversations]
        if sum(lengths) <= LONG_TEXT:
            plain = spelt_once(self._most_marks)
            return self._questions(conversations, policy, handling, self._passes(conversations, plain))
        plain, passes = spelt_once(self._most_marks), list[Passes]()
        for share in _shares(conversations, lengths):
            passes += await done(partial(self._passes, share, plain), large=True)
        return await done(lambda: self._questions(conversations, policy, handling, passes), large=True)

    def _questions(
        self, conversations: Sequence[Conversation], policy: Policy, handling: Handling, passes: Sequence[Passes]
    ) -> list[Question]:
        too_many = len(passes) > 1 and sum(len(each.passes) for each in passes) > MAX_PASSES
        return [
            self.question(conversation, policy, handling, each, fewer=too_many)
            for conversation, each in zip(conversations, passes, strict=True)
        ]

    def question(
        self, conversation: Conversation, policy: Policy, handling: Handling, passes: Passes, *, fewer: bool = False
    ) -> Question:
        """The question that asks about `conversation` by `passes`, or with `fewer` only by those about whole turns."""
        joined = fewer and not all(one.whole for one in passes.passes)
        key = self.key(conversation, policy, handling, joined=joined)
        return Question(conversation, policy, handling, passes.joined if joined else passes, key)

    def key(self, conversation: Conversation, policy: Policy, handling: Handling, *, joined: bool = False) -> Key:
        """Equal for equal questions of one tenant, and for no others.

        `joined` questions are asked in fewer passes (server.moderation.passes), so they may get another answer. The
        key leaves out whether the work is in the background, which changes no answer. It includes the field that held
        an image, since errors name the field. The image behind an http(s) URL may change, so such a question gets a
        key that equals no other.
        """
        digest = self._begun.copy() if policy is self._policy else self._begin(policy)
        _add(digest, repr((*handling.distinct, joined)))
        for turn in conversation.turns:
            digest.update(_ROLES[turn.role])
            for part in turn.parts:
                if not isinstance(part, ImagePart):
                    digest.update(_OPERATORS_TEXT if part.operator else _TEXT)
                    _add(digest, part.text)
                elif scheme_of(part.url) == "data":
                    digest.update(_OPERATORS_IMAGE if part.operator else _IMAGE)
                    _add(digest, part.param)
                    _add(digest, part.url)
                else:
                    return AskedOnce()
        return digest.digest()

    def _passes(self, conversations: Sequence[Conversation], plain: Plain) -> list[Passes]:
        try:
            return passes_of_all(conversations, plain)
        except TooManyMarks:
            raise ContextLengthExceeded(
                f"A text has more than {self._most_marks} marks of a conversation, such as the names of speakers. This"
                " model's context has no room for as many. Please reduce the length of the messages.",
                param="messages",
            ) from None

    def _length(self, conversation: Conversation) -> int:
        """How much there is to read. Raises ContextLengthExceeded if there is more than any context holds."""
        self.check_length(conversation)
        return _length_of_texts(conversation) + sum(len(image.url) for image in conversation.images)

    def _begin(self, policy: Policy) -> "_Hash":
        digest = hashlib.sha256()
        _add(digest, self._served)
        _add(digest, repr(policy))
        return digest


def _length_of_texts(conversation: Conversation) -> int:
    parts = [part for turn in conversation.turns for part in turn.parts]
    return PART * len(parts) + sum(len(part.text) for part in parts if isinstance(part, TextPart))


def _shares(conversations: Sequence[Conversation], lengths: Sequence[int]) -> Iterator[list[Conversation]]:
    """The conversations in order, about SHARE of them at a time."""
    share, length = list[Conversation](), 0
    for conversation, its_length in zip(conversations, lengths, strict=True):
        if share and length + its_length > SHARE:
            yield share
            share, length = [], 0
        share.append(conversation)
        length += its_length
    yield share


def _add(digest: "_Hash", text: str) -> None:
    """Add the length in bytes before each field, so that two different sequences of fields never look alike."""
    content = text.encode("utf-8", "surrogatepass")
    digest.update(len(content).to_bytes(8, "big"))
    digest.update(content)


def _field(text: str) -> bytes:
    """The bytes that `_add` adds, to be computed once for a constant."""
    return len(text).to_bytes(8, "big") + text.encode("ascii")


_TEXT, _IMAGE = _field("text"), _field("image")
_OPERATORS_TEXT, _OPERATORS_IMAGE = _field("operator's text"), _field("operator's image")
_ROLES = {role: _field(role.value) for role in Role}
