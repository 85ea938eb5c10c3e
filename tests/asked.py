"""What a rendered prompt asks about, read back from its text by a reader that shares no code with the server's."""

import re

from server.families.base import Prompt

_SPEAKERS = "user|agent|human|assistant|system|developer|tool|function|ipython|ai|bot|chatbot|model"
_LABEL = re.compile(
    rf"(?:(?<=[\n\r\v\f\x1c-\x1e\x85\u2028\u2029])|(?<=\\n))[ \t]*(?:{_SPEAKERS})[ \t]*:", re.IGNORECASE
)
_MESSAGE_END = "\\n\\n\n\n"


def conversation_in(prompt: Prompt) -> str:
    """What stands between the first beginning and the last end of the conversation."""
    return prompt.text.partition("<BEGIN CONVERSATION>\n")[2].rpartition("<END CONVERSATION>")[0]


def messages_of(prompt: Prompt) -> list[str]:
    """The messages that a lenient reader sees."""
    spoken = "\n" + conversation_in(prompt)
    starts = [label.start() for label in _LABEL.finditer(spoken)]
    return [spoken[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]


def asked_about(prompt: Prompt) -> str:
    """The text of the last message, which the prompt's last sentence asks about."""
    (judged,) = set(re.findall(r"ONLY THE LAST (\w+) message", prompt.text.rpartition("<END CONVERSATION>")[2]))
    last = messages_of(prompt)[-1]
    label = _LABEL.match("\n" + last, 1)
    assert label is not None
    assert label[0].strip(" :") == judged, "the last message is not the one that is asked about"
    return last[label.end() - 1 :].removesuffix(_MESSAGE_END).replace("<|image|>", "").strip()
