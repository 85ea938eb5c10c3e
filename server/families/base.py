"""A family of guard models: how it is asked, and how its answer is read. docs/models.md shows how to add one.

A family does no input or output. What it asks is a generator of steps: it yields the prompts of one step, is sent the
engine's answers to them, and returns what it read. So a family knows no engine, an engine knows no model, and a test
drives a family with answers that it makes up.
"""

import importlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar, Protocol, TypeAlias

from server.domain.conversation import Conversation, ImagePart, Role
from server.domain.errors import OperatorError
from server.domain.pictures import PictureSizes, within
from server.domain.policy import Policy
from server.domain.taxonomy import Taxonomy
from server.domain.verdict import Levels, Reading, Said, Token, Verdict
from server.families.tokenizer import Piece, PromptTokenizer

CONTROL_TOKEN = re.compile(r"<\|[^<>|\s]+\|>|</?[a-z_]+>|\[/?[A-Z_]+\]")
"""How control tokens are spelt in the vocabularies of guard models: `<|eot|>`, `<start_of_turn>`, `</s>`, `[INST]`."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """The pieces of one prompt, and the categories that it asks about.

    Each image of the conversation has one image token in the pieces, in the order of `Conversation.images`.
    """

    pieces: tuple[Piece, ...]
    taxonomy: Taxonomy

    @property
    def text(self) -> str:
        """The prompt as the official template would print it."""
        return "".join(piece.text for piece in self.pieces)

    def token_ids(self, tokenizer: PromptTokenizer) -> list[int]:
        return tokenizer.encode(self.pieces)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to an engine: go on from `prompt` and from `begun`, token ids of an answer that has begun.

    The answer has at most `max_tokens` tokens and ends at the first of `stop`. `logprobs` are the ids whose
    log-probabilities are wanted at each of its tokens. Only where `may_be_cut` is an answer that ends at `max_tokens`
    a whole one.
    """

    prompt: Prompt
    begun: tuple[int, ...]
    max_tokens: int
    stop: tuple[int, ...]
    logprobs: tuple[int, ...]
    may_be_cut: bool = False


@dataclass(slots=True)
class Answer:
    """What an engine made of an Ask: token ids, and natural log-probabilities of the ids asked for at each of them."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[Mapping[int, float]] = field(default_factory=list)

    def probability(self, position: int, token: int) -> float:
        return math.exp(self.logprobs[position].get(token, -math.inf))


Steps: TypeAlias = Generator[Sequence[Ask], Sequence[Answer], Reading]


@dataclass(frozen=True, slots=True)
class Wording:
    """A verdict as words. `cut` says that a bound on tokens left categories out; `tokens` spell `text`, if known."""

    text: str
    tokens: tuple[Token, ...] | None = None
    cut: bool = False


class FinishedPrompt(Protocol):
    """A guard prompt that a caller finished, read back (docs/migrate.md)."""

    @property
    def categories(self) -> Mapping[str, str]:
        """Its own categories, code to words, in its order."""

    @property
    def codes(self) -> Mapping[str, str]:
        """The codes that the model is asked with, to those of the prompt."""

    @property
    def words(self) -> Mapping[str, str]:
        """What it says of each category, under the codes that the model is asked with."""

    def asks_for(self, taxonomy: Taxonomy) -> bool:
        """Whether all its categories are of `taxonomy`."""

    def conversation(self) -> Conversation:
        """What it asks to judge."""

    def everything(self, taxonomy: Taxonomy) -> Conversation:
        """All that it says as a message of the user's."""


class Asker(ABC):
    """Asks an engine whose tokenizer is known."""

    @abstractmethod
    def steps(self, conversation: Conversation, policy: Policy, top_logprobs: int | None = None) -> Steps:
        """What is asked about the last turn of `conversation`, step by step.

        Each step yields requests that the engine works on together, and is sent their answers in order. The Decision in
        the Reading comes from `server.domain.verdict.decide`, which no family may replace. For `top_logprobs`, the
        Reading holds the answer's tokens with so many alternatives; None asks for no tokens. Raises InvalidRequest for
        a conversation that the model was not trained on, UnparseableVerdict for an answer that is not a verdict.
        """


class Family(ABC):
    """The words of a family. Everything here is known without an engine."""

    tokens: ClassVar[Mapping[str, str]] = {}
    """Words that must be single tokens: a profile's [tokens] names their ids by these keys, as a check."""

    control_tokens: ClassVar[Sequence[str]] = ()
    """Added tokens that the prompt is made of: a tokenizer without them is another model's."""

    bos_token: ClassVar[str] = ""
    """What the checkpoint's own chat template is given under this name."""

    own_codes: ClassVar[tuple[str, ...]] = ()
    """Codes under which a request may bring categories of its own; none where the model knows only its own."""

    pictures: ClassVar[PictureSizes] = within(1536 * 1536, 4096)
    """How large a picture the model can use; what is larger is shrunk before it is held in memory."""

    longest_answer: ClassVar[int] = 64
    """Tokens within which every answer ends, whatever tokenizer a remote backend has."""

    @abstractmethod
    def prompt(self, conversation: Conversation, taxonomy: Taxonomy) -> Prompt:
        """The official moderation prompt. Raises InvalidRequest for what the model was not trained on."""

    @abstractmethod
    def read(self, text: str, levels: Levels | None = None) -> Said:
        """A whole answer, without white space that leads it. Raises UnparseableVerdict for any other text."""

    @abstractmethod
    def asker(self, tokenizer: PromptTokenizer, ends: Sequence[int]) -> Asker:
        """Asks an engine with this tokenizer, where `ends` are the ids that end an answer.

        Raises ValueError, with words for the operator, for a tokenizer that the family cannot work with.
        """

    def check_categories(self, taxonomy: Taxonomy) -> None:
        """Raises ValueError, with words for the operator, for categories that the model cannot answer with."""
        unknown = [code for code in taxonomy.codes if code not in self.own_codes]
        if self.own_codes and unknown:
            raise ValueError(f"code {', '.join(unknown)} must be one of {self.own_codes[0]} to {self.own_codes[-1]}")

    def asked(self, conversation: Conversation, taxonomy: Taxonomy) -> Taxonomy:
        """The categories of `taxonomy` that are asked about `conversation`."""
        return taxonomy.for_images() if conversation.images else taxonomy

    def spells_control(self, text: str) -> bool:
        """Whether `text` may spell a control token of the model: a remote backend may take it for a real one.

        Unless a family knows how all of its model's are spelt, whatever looks like a control token of any model does.
        """
        return CONTROL_TOKEN.search(text) is not None

    def for_template(self, conversation: Conversation) -> list[dict[str, object]]:
        """`conversation` as the checkpoint's own chat template takes it: here a list of parts for each turn."""
        return [
            {
                "role": "user" if turn.role is Role.USER else "assistant",
                "content": [
                    {"type": "image"} if isinstance(part, ImagePart) else {"type": "text", "text": part.text}
                    for part in turn.parts
                ],
            }
            for turn in conversation.turns
        ]

    def write(
        self,
        verdict: Verdict,
        *,
        codes: Mapping[str, str] | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> Wording:
        """`verdict` as the model would write it; here: `safe`, or `unsafe` and a line of categories, never cut.

        `codes` maps the model's codes to the caller's. `max_tokens` bounds the answer, and it ends before the first of
        `stop`; but what is written never says anything else than the verdict.
        """
        if not verdict.unsafe:
            return Wording("safe")
        listed = ",".join((codes or {}).get(code, code) for code in verdict.categories)
        return Wording(f"unsafe\n{listed}" if listed else "unsafe")

    def splits_an_answer(self, stop: str) -> bool:
        """Whether ending at `stop` could leave half a word or half a category of some answer."""
        return False

    def finished_prompt(self, text: str, images: Sequence[ImagePart] = ()) -> FinishedPrompt | None:
        """`text` read back where it is a prompt of this family that a caller finished. Raises InvalidRequest."""
        return None


@cache
def family_named(name: str) -> Family:
    """The family in the folder `name` of server/families, or in a module `package.module` of another package.

    The module holds one class of Family. Raises OperatorError where there is none.
    """
    module_name = name if "." in name else f"server.families.{name}.family"
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise OperatorError(f"There is no family of guard models {name!r}: {error}. See docs/models.md.") from error
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Family) and value.__module__ == module_name:
            return value()
    raise OperatorError(f"{module_name} defines no Family. See docs/models.md.")
