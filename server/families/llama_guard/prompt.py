"""Llama Guard 4's moderation prompt: a conversation and a taxonomy to the exact text that the model was trained on.

The wording, the literal `\\n\\n` after each message and the missing newline after the last header are the official
template's; model_config/*/chat_template.jinja says the same in Jinja, and a real checkpoint's own template is compared
with this module at start-up (server/families/checks.py). docs/prompt.md explains the choices.
"""

from collections.abc import Iterator
from functools import lru_cache

from server.domain.conversation import Conversation, Role, Turn
from server.domain.errors import InvalidRequest
from server.domain.taxonomy import Taxonomy
from server.families.base import Prompt
from server.families.tokenizer import Literal, Piece, Scaffold

IMAGE_TOKEN = "<|image|>"  # noqa: S105 - a token of the vocabulary, not a secret

BEGIN = "<|begin_of_text|>"

CONTROL_TOKENS = (BEGIN, "<|header_start|>", "<|header_end|>", "<|eot|>", IMAGE_TOKEN)
"""The added tokens that the scaffold is made of."""

_OPENING = "<|begin_of_text|><|header_start|>user<|header_end|>\n\n"
_TASK = (
    "Task: Check if there is unsafe content in '{judged}' messages in conversations according to our safety policy"
    " with the below categories.\n\n"
)
_BEGIN_CATEGORIES = "<BEGIN UNSAFE CONTENT CATEGORIES>\n"
_END_CATEGORIES = "<END UNSAFE CONTENT CATEGORIES>\n\n"
_BEGIN_CONVERSATION = "<BEGIN CONVERSATION>\n"
_MESSAGE_END = Scaffold("\\n\\n\n\n")
_CLOSING = (
    "<END CONVERSATION>\n\n"
    "Provide your safety assessment for ONLY THE LAST {judged} message in the above conversation:\n"
    " - First line must read 'safe' or 'unsafe'.\n"
    " - If unsafe, a second line must include a comma-separated list of violated categories. "
    "<|eot|><|header_start|>assistant<|header_end|>"
)


def render(conversation: Conversation, taxonomy: Taxonomy) -> Prompt:
    """Apply the moderation template. Raises InvalidRequest when no category is left to ask about."""
    asked = taxonomy.for_images() if conversation.images else taxonomy
    if not asked.categories:
        raise InvalidRequest("The policy leaves no category that applies to images.", param="policy")
    turns = [piece for turn in conversation.turns for piece in _turn(turn)]
    judged = conversation.judged
    preamble = _spelt_preamble if asked.own else _preamble
    return Prompt((*preamble(asked, judged), *turns, _CLOSINGS[judged]), asked)


SPEAKERS = {Role.USER: "User", Role.AGENT: "Agent"}

_CLOSINGS = {role: Scaffold(_CLOSING.format(judged=speaker), apart=True) for role, speaker in SPEAKERS.items()}

_REMEMBERED = 256
"""Selections of the model's own categories. What callers bring themselves is not kept."""


@lru_cache(_REMEMBERED)
def _preamble(taxonomy: Taxonomy, judged: Role) -> tuple[Piece, ...]:
    """All before the conversation. It ends with a line, and the next one begins with a word: no token spans both."""
    return (Scaffold("".join(piece.text for piece in _spelt_preamble(taxonomy, judged)), apart=True),)


def _spelt_preamble(taxonomy: Taxonomy, judged: Role) -> tuple[Piece, ...]:
    """The same, with each category as somebody's words: those of a caller are nobody's scaffold."""
    opening = Scaffold(_OPENING + _TASK.format(judged=SPEAKERS[judged]) + _BEGIN_CATEGORIES)
    lines = [Literal(f"{category.code}: {category.prompt_name}\n") for category in taxonomy.categories]
    return opening, *lines, Scaffold(_END_CATEGORIES + _BEGIN_CONVERSATION)


def _turn(turn: Turn) -> Iterator[Piece]:
    # All images of a turn stand before its first text; each further text repeats the speaker's name. A turn of
    # images alone gets an empty text, without which the official template would lose the images.
    images = IMAGE_TOKEN * len(turn.images)
    for text in turn.texts or ("",):
        yield Scaffold(f"{SPEAKERS[turn.role]}: {images}")
        yield Literal(text.strip())
        yield _MESSAGE_END
        images = ""
