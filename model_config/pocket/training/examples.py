"""From rows to token sequences with targets: the server's own prompt, disturbed in ways that teach something.

Each disturbance stands for something that happens to a moderation model: typing errors, earlier turns, replies,
excluded categories, a caller's own categories, pictures, very long messages.  Every epoch draws them anew.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from model_config.pocket.training.data import Row
from model_config.pocket.training.pictures import FEATURES_A_TILE
from model_config.pocket.training.tokenizer import BEGIN_CONVERSATION, CATEGORY_LINES, HEADER_WORDS, ORDINARY_TOKENS
from server.domain.conversation import Conversation, ImagePart, Message, Part, TextPart
from server.domain.taxonomy import HazardCategory, Taxonomy
from server.families.llama_guard.prompt import render
from server.families.tokenizer import PromptTokenizer

LONGEST_TEXT = 600
LONGEST_EASY_TEXT = 240
LONGEST_EARLIER_TEXT = 240
LONGEST_BURIED_TEXT = 6000
LONGEST_REPETITION = 32_000
LAST_POSITION = 8000

OWN_CATEGORIES = (
    "Spoilers.",
    "Off Topic.",
    "Advertising.",
    "Bad Grammar.",
    "Homework.",
    "Competitors.",
    "Legal Questions about Our Products.",
    "Rude Words.",
    "Questions in Other Languages.",
    "Sports.",
)


@dataclass(frozen=True, slots=True)
class Example:
    """One sequence: prompt and answer, and where the answer's tokens are predicted."""

    ids: tuple[int, ...]
    prompt_length: int
    preamble: int
    """How many tokens stand before the conversation."""
    tiles: int = 0
    replaceable: tuple[int, ...] = ()
    jump: tuple[int, int] = (0, 0)


class Scribe:
    """Writes rows as examples."""

    def __init__(self, tokenizer: PromptTokenizer, rows: Sequence[Row], seed: int) -> None:
        self.tokenizer = tokenizer
        self.dice = random.Random(seed)
        self.earlier = [row.messages[-1] for row in rows if len(row.messages[-1]) < 300]
        self.harmless = [row.messages[-1] for row in rows if not row.unsafe and 40 < len(row.messages[-1]) < 600]
        self.patch = self._control("<|patch|>")
        self.image = self._control("<|image|>")
        self.eot = self._control("<|eot|>")
        self.begin = self._control(BEGIN_CONVERSATION)
        self.fixed = {self._word(word) for word in (*HEADER_WORDS, ":", "\n\n")}

    def plain(self, row: Row) -> Example:
        """The row as the server would ask about it, with the whole official policy."""
        return self._example(row, row.messages, official())

    def disturbed(self, row: Row, easy: bool = False) -> Example:
        """The row with zero or more disturbances; easy ones stay short."""
        dice = self.dice
        messages = list(row.messages)
        longest = LONGEST_EASY_TEXT if easy else LONGEST_TEXT
        if dice.random() < 0.3:
            messages[-1] = _retyped(messages[-1], dice).strip() or messages[-1]
        if len(messages) == 1 and dice.random() < (0.08 if easy else 0.2):
            messages = self._in_context(messages[0])
        roll = 1.0 if easy else dice.random()
        if roll < 0.01:
            messages[-1] = self._buried(messages[-1])
            longest = LONGEST_BURIED_TEXT
        elif roll < 0.018:
            messages[-1], row = self._repeated(messages[-1], row)
            longest = LONGEST_REPETITION
        taxonomy = official()
        roll = dice.random()
        if roll < 0.12:
            taxonomy = _narrowed(taxonomy, row, dice)
        elif roll < 0.14:
            taxonomy, row = _own(row, dice)
        images = 0
        if not easy and dice.random() < 0.07:
            images = dice.choices((1, 2, 3, 5), weights=(80, 12, 5, 3))[0]
            if dice.random() < 0.08:
                messages, row = [""], replace(row, unsafe=False, categories=())
        example = self._example(row, messages, taxonomy, images, longest)
        if dice.random() < 0.2:
            at = dice.randrange(example.preamble, len(example.ids))
            far = dice.randrange(0, max(1, LAST_POSITION - len(example.ids)))
            example = replace(example, jump=(at, far))
        return example

    def _example(
        self, row: Row, messages: Sequence[str], taxonomy: Taxonomy, images: int = 0, longest: int = LONGEST_TEXT
    ) -> Example:
        prompt = render(_conversation(messages, images, longest, self.dice), taxonomy)
        ids: list[int] = []
        tiles = 0
        for index in prompt.token_ids(self.tokenizer):
            if index == self.image:
                block, block_tiles = self._image_block()
                ids += block
                tiles += block_tiles
            else:
                ids.append(index)
        answer = answer_text(row, prompt.taxonomy)
        answer_ids = [*self.tokenizer.encode_text("\n\n"), *self.tokenizer.encode_text(answer), self.eot]
        replaceable = tuple(
            place for place, index in enumerate(ids) if index < ORDINARY_TOKENS and index not in self.fixed
        )
        return Example((*ids, *answer_ids), len(ids), ids.index(self.begin) + 1, tiles, replaceable)

    def _image_block(self) -> tuple[list[int], int]:
        """What the processor writes for one picture: usually one tile, at times four and the overview."""
        high, wide = self.dice.choices(((1, 1), (1, 2), (2, 1), (2, 2)), weights=(90, 4, 4, 2))[0]
        patches = [self.patch] * FEATURES_A_TILE
        block = [self._control("<|image_start|>")]
        if high * wide > 1:
            for _ in range(high):
                for column in range(wide):
                    block += patches
                    if column < wide - 1:
                        block.append(self._control("<|tile_x_separator|>"))
                block.append(self._control("<|tile_y_separator|>"))
        block += [self.image, *patches, self._control("<|image_end|>")]
        return block, 1 if high * wide == 1 else 1 + high * wide

    def _in_context(self, text: str) -> list[str]:
        """The same words later in a conversation, by either speaker: only the last message is judged."""
        before = self.dice.choice((1, 1, 1, 2, 2, 3))
        return [self.dice.choice(self.earlier) for _ in range(before)] + [text]

    def _buried(self, text: str) -> str:
        """The same words somewhere in a long harmless text."""
        parts = [self.dice.choice(self.harmless) for _ in range(self.dice.randint(2, 14))]
        parts.insert(self.dice.randint(0, len(parts)), text)
        return "\n".join(parts)

    def _repeated(self, text: str, row: Row) -> tuple[str, Row]:
        """One harmless word or sentence again and again, at times with the row's words before or after it."""
        sentence = self.dice.choice(self.harmless)
        phrase = self.dice.choice((self.dice.choice(sentence.split()), sentence[:80], "a", "word", "x "))
        tokens = self.dice.choice((100, 400, 1000, 2000, 6500))
        filler = " ".join([phrase] * max(2, tokens // max(1, len(self.tokenizer.encode_text(" " + phrase)))))
        if self.dice.random() < 0.6:
            return filler, replace(row, unsafe=False, categories=())
        return (f"{text} {filler}" if self.dice.random() < 0.5 else f"{filler} {text}"), row

    def _control(self, token: str) -> int:
        index = self.tokenizer.control_id(token)
        if index is None:
            raise ValueError(f"the vocabulary lacks {token}")
        return index

    def _word(self, text: str) -> int:
        index = self.tokenizer.single_id(text)
        if index is None:
            raise ValueError(f"{text!r} is not one token")
        return index


def official() -> Taxonomy:
    """The fourteen categories of the official prompt."""
    split = [line.strip().split(": ", 1) for line in CATEGORY_LINES]
    return Taxonomy(tuple(HazardCategory(code, words, text_only=code == "S14") for code, words in split))


def answer_text(row: Row, taxonomy: Taxonomy) -> str:
    """What the model shall say: only categories that the prompt asks about count."""
    codes = [f"S{number}" for number in row.categories if f"S{number}" in taxonomy.codes]
    if not codes:
        return "safe"
    return "unsafe\n" + ",".join(codes)


def _conversation(messages: Sequence[str], images: int, longest: int, dice: random.Random) -> Conversation:
    turns: list[Message] = []
    with_images = dice.randrange(len(messages)) if len(messages) > 2 else 0
    for number, text in enumerate(messages):
        last = number == len(messages) - 1
        pictures: list[Part] = [ImagePart("")] * images if number == with_images - with_images % 2 else []
        words = TextPart(_shortened(text, longest if last else LONGEST_EARLIER_TEXT))
        turns.append(Message("user" if number % 2 == 0 else "assistant", (*pictures, words)))
    return Conversation.from_messages(turns)


def _shortened(text: str, longest: int) -> str:
    """Head and tail of a long text."""
    if len(text) <= longest:
        return text
    return text[: longest * 3 // 4] + " ... " + text[-longest // 4 :]


def _narrowed(taxonomy: Taxonomy, row: Row, dice: random.Random) -> Taxonomy:
    """Leave out categories: at random, or just those of the row."""
    if row.categories and dice.random() < 0.4:
        left_out = [f"S{number}" for number in row.categories]
    else:
        left_out = [code for code in taxonomy.codes if dice.random() < 0.3]
    return taxonomy.without(left_out) if len(left_out) < len(taxonomy.codes) else taxonomy


def _own(row: Row, dice: random.Random) -> tuple[Taxonomy, Row]:
    """A caller's own categories: unknown ones are never violated, known words keep their meaning."""
    if dice.random() < 0.4:
        return Taxonomy.from_mapping({c.code: c.prompt_name for c in official().categories}), row
    words = dice.sample(OWN_CATEGORIES, dice.randint(1, 6))
    taxonomy = Taxonomy.from_mapping({f"S{number}": text for number, text in enumerate(words, 1)})
    return taxonomy, replace(row, unsafe=False, categories=())


def _retyped(text: str, dice: random.Random) -> str:
    """The text as somebody else might type it."""
    way = dice.choice(("lower", "lower", "upper", "bare", "greeting", "please", "slips", "slips"))
    if way == "lower":
        return text.lower()
    if way == "upper" and len(text) < 200:
        return text.upper()
    if way == "bare":
        return text.rstrip(".?! ")
    if way == "greeting":
        return dice.choice(("Hi, ", "Hello! ", "hey ", "Quick question: ", "Excuse me, ")) + text
    if way == "please":
        return text.rstrip(".?! ") + dice.choice((" please", ", please.", " thanks", "??", "!!", "..."))
    letters = list(text)
    for _ in range(max(1, len(letters) // 40)):
        place = dice.randrange(len(letters))
        letters[place] = dice.choice(("", letters[place] * 2, letters[place].swapcase()))
    return "".join(letters)
