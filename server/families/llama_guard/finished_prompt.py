"""Guard prompts that a caller finished: NeMo Guardrails, OGX and others write Llama Guard's whole prompt themselves and
send it as one user message. Wrapped again it would be judged as a text about a prompt; so it is read back here.

Everything in it stays the caller's text. The prompt that the model gets is written anew from what was read.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType

from server.domain.conversation import ROLES, Conversation, ImagePart, Message, Role, TextPart, says_something
from server.domain.errors import InvalidRequest, NothingToJudge
from server.domain.taxonomy import Taxonomy

MAX_MESSAGES = 1000
"""Of a conversation in a finished prompt."""

MAX_CATEGORIES = 14
"""The model answers with S1 to S14."""

SPEAKERS: dict[str, Role] = {
    **{role.capitalize(): turn for role, turn in ROLES.items()},
    "Agent": Role.AGENT,
    "Human": Role.USER,
}
"""Who may stand before a colon, and on whose side: the official words, and wire roles with a capital, as in OGX."""

LONGEST_EDGE = 4096
"""Characters of what stands before the task, or behind the conversation."""

_SPEAKER = "|".join(SPEAKERS)
_TASK = "Task: Check if there is unsafe content in '"
_OPENING = re.compile(
    r"(?:\s|<s>|\[INST\]|<\|begin_of_text\|>|<\|(?:header_start|start_header_id)\|>user<\|(?:header_end|end_header_id)\|>)*"
    rf"Task: Check if there is unsafe content in '(?P<judged>{_SPEAKER})' messages in conversations"
    r" according (?:to )?our safety policy with the below categories\.\s*<BEGIN UNSAFE CONTENT CATEGORIES>"
)
_END_CATEGORIES = "<END UNSAFE CONTENT CATEGORIES>"
_BEGIN_CONVERSATION = re.compile(r"\s*<BEGIN CONVERSATION>")
_END_CONVERSATION = "<END CONVERSATION>"
_CLOSING = re.compile(
    rf"\s*Provide your safety assessment for (?:ONLY THE LAST )?(?P<judged>{_SPEAKER})(?: message)?"
    r" in the above conversation:\s*- First line must read 'safe' or 'unsafe'\.\s*"
    r"- If unsafe, a second line must include a comma-separated list of violated categories\."
    r"(?:\s|\[/INST\]|<\|eot(?:_id)?\|>"
    r"|<\|(?:header_start|start_header_id)\|>assistant<\|(?:header_end|end_header_id)\|>)*"
)
_CATEGORY = re.compile(r"^[ \t]*([A-Z][0-9]{1,3}):", re.MULTILINE)
_TURN = re.compile(rf"^[ \t]*({_SPEAKER}):", re.MULTILINE)
_MESSAGE_END = "\\n\\n"


@dataclass(frozen=True, slots=True)
class FinishedPrompt:
    """`categories` are the prompt's own, code to words, in its order; `listed` is the text that holds them.

    `judged` is whose last message it asks to judge, `said` the text of the conversation, with its labels.
    """

    categories: Mapping[str, str]
    listed: str
    judged: Role
    said: str
    images: tuple[ImagePart, ...] = ()

    @classmethod
    def read(cls, text: str, images: Sequence[ImagePart] = ()) -> "FinishedPrompt | None":
        """Read `text` back, None when it is not such a prompt as a whole.

        Raises InvalidRequest when it is one that cannot be judged, NothingToJudge when one of its messages is empty.
        """
        # The common beginning is looked for first: the whole expression would take much memory for a long text.
        if text.find(_TASK, 0, LONGEST_EDGE) < 0 or (opening := _OPENING.match(text)) is None:
            return None
        end_categories = text.find(_END_CATEGORIES, opening.end())
        # The first beginning and the last end: markers that somebody wrote between them are what somebody wrote.
        begin = _BEGIN_CONVERSATION.match(text, end_categories + len(_END_CATEGORIES)) if end_categories >= 0 else None
        end = text.rfind(_END_CONVERSATION, begin.end()) if begin is not None else -1
        if begin is None or end < 0:
            return None
        if len(text) - end > LONGEST_EDGE:
            return None
        closing = _CLOSING.fullmatch(text, end + len(_END_CONVERSATION))
        if closing is None or SPEAKERS[closing["judged"]] is not SPEAKERS[opening["judged"]]:
            return None
        listed, said = text[opening.end() : end_categories], text[begin.end() : end]
        judged = SPEAKERS[opening["judged"]]
        turns = list(islice(_turns(said, judged), MAX_MESSAGES + 1))
        if len(turns) > MAX_MESSAGES:
            raise InvalidRequest(f"A finished Guard prompt may hold at most {MAX_MESSAGES} messages.")
        if not turns or not all(says_something(_without_label(raw)) for _, raw in turns):
            raise NothingToJudge("A finished Guard prompt holds an empty message.")
        return cls(MappingProxyType(_categories(listed)), listed, judged, said, tuple(images))

    def conversation(self) -> Conversation:
        """What it asks to judge."""
        return _conversation(self.said, self.judged, self.images)

    def everything(self, taxonomy: Taxonomy) -> Conversation:
        """All that it says as a message of the user's, for those whose choice of what is judged does not count.

        Its categories are left out where they are those of `taxonomy`: then nobody else wrote them.
        """
        label = _TURN.match(self.said.lstrip())
        # The user's own label is no mark of another message.
        users = label is None or SPEAKERS[label[1]] is Role.USER
        said = _without_label(self.said.lstrip()) if users else self.said.strip()
        listed = () if self.asks_for(taxonomy) else (TextPart(self.listed),)
        return Conversation.from_user(*self.images, TextPart(said), *listed)

    @property
    def codes(self) -> dict[str, str]:
        """The codes that the model is asked with, S1, S2 and so on, to those of the prompt."""
        return {f"S{number}": code for number, code in enumerate(self.categories, 1)}

    @property
    def words(self) -> dict[str, str]:
        """What the prompt says of each category, under the codes that the model is asked with."""
        return {f"S{number}": words for number, words in enumerate(self.categories.values(), 1)}

    def asks_for(self, taxonomy: Taxonomy) -> bool:
        """Whether all its categories are of `taxonomy`, by code and name."""
        names = {category.code: {_bare(category.prompt_name), _bare(category.name)} for category in taxonomy.categories}
        return all(_bare(words) in names.get(code, ()) for code, words in self.categories.items())


def _bare(name: str) -> str:
    return name.strip().removesuffix(".").casefold()


def _categories(text: str) -> dict[str, str]:
    # One split more than categories is enough to see that there are too many.
    before, *rest = _CATEGORY.split(text, maxsplit=MAX_CATEGORIES + 1)
    codes, words = rest[::2], [description.strip() for description in rest[1::2]]
    if before.strip() or not 1 <= len(codes) <= MAX_CATEGORIES or len(set(codes)) < len(codes) or "" in words:
        raise InvalidRequest(
            f"A finished Guard prompt needs 1 to {MAX_CATEGORIES} categories, each with a code of its own"
            " and a description behind it."
        )
    return dict(zip(codes, words, strict=True))


def _conversation(text: str, judged: Role, images: Sequence[ImagePart]) -> Conversation:
    """The turns of a finished prompt's conversation.

    Nobody can tell a turn from a line in a message that looks like one. What is known is who is judged, and that the
    last turn is theirs: whatever stands behind the last label of theirs is their message, other labels included, and
    without such a label everything is.
    """
    turns = list(_turns(text, judged))
    last = max((index for index, (role, _) in enumerate(turns) if role is judged), default=0)
    start = len(text) - sum(len(raw) for _, raw in turns[last:])
    labelled = not turns or turns[last][0] is judged
    final = _without_label(text[start:]) if labelled else text[start:].strip()
    spoken = [*((role, _without_label(raw)) for role, raw in turns[:last]), (judged, final)]
    messages = [Message(_WIRE_ROLES[role], (TextPart(words),)) for role, words in spoken]
    if images:
        # Pictures come from the user's side, and the senders of such prompts keep the latest one only.
        at = max((index for index, (role, _) in enumerate(spoken) if role is Role.USER), default=None)
        if at is None:
            messages.insert(0, Message("user", tuple(images)))
        else:
            messages[at] = Message("user", (*images, *messages[at].parts))
    return Conversation.from_messages(messages)


_WIRE_ROLES = {Role.USER: "user", Role.AGENT: "assistant"}


def _turns(text: str, judged: Role) -> Iterator[tuple[Role, str]]:
    """Speaker and raw text, label included, of all that the conversation holds. What has no label is the judged's."""
    start, speaker = 0, judged
    for begin, named in _labels(text):
        if start or text[:begin].strip():
            yield speaker, text[start:begin]
        start, speaker = begin, named
    if start or text.strip():
        yield speaker, text[start:]


def _labels(text: str) -> Iterator[tuple[int, Role]]:
    """What `_TURN` finds: the beginning of each line with a label, and its speaker.

    The expression would go through a long text in one call, which keeps other threads waiting.
    """
    line = 0
    while (colon := text.find(":", line)) >= 0:
        line = text.rfind("\n", line, colon) + 1 or line
        speaker = SPEAKERS.get(text[line:colon].lstrip(" \t"))
        if speaker is not None:
            yield line, speaker
        end = text.find("\n", colon)
        if end < 0:
            return
        line = end + 1


def _without_label(raw: str) -> str:
    label = _TURN.match(raw)
    words = raw[label.end() :] if label is not None else raw
    # The official template writes this behind every message, as four characters.
    return words.strip().removesuffix(_MESSAGE_END).strip()
