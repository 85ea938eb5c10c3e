"""What is asked: made-up, harmless English, and made-up pictures. Nothing is asked twice unless that is the load."""

import base64
import io
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

SHORT_WORDS, LONG_WORDS = (15, 150), (1450, 1550)
"""Fewest and most words: with punctuation 20 to 200 tokens, and about 2,000, of a vocabulary the size of Llama 4's."""

PICTURE_SIZES = ((336, 336), (1024, 768), (1920, 1080))

REPEATED_POOL = 200
"""Different texts of the repeated load."""

RESERVED_TOKENS = 400
"""What the moderation prompt and the answer take of the context, and some more."""

Content = str | list[dict[str, Any]]
"""A message's content: text, or text and pictures."""

SUBJECTS = (
    *("my neighbour", "our teacher", "the gardener", "a friend of mine", "the librarian", "my grandmother"),
    *("the baker", "our team", "the new student", "a tourist", "the museum guide", "my cousin", "the carpenter"),
)
VERBS = (
    *("described", "painted", "repaired", "remembered", "planned", "measured", "photographed", "cleaned"),
    *("visited", "organised", "compared", "finished", "borrowed", "explained", "improved", "wrapped"),
)
ADJECTIVES = (
    *("small", "quiet", "yellow", "wooden", "old", "friendly", "round", "bright", "simple", "comfortable", "warm"),
    *("green", "long", "pretty", "careful", "ordinary", "famous", "useful", "heavy", "clean"),
)
NOUNS = (
    *("kitchen table", "vegetable garden", "bicycle", "recipe for bread", "holiday in the mountains", "bookshelf"),
    *("summer concert", "history lesson", "train journey", "birthday cake", "river walk", "winter coat", "window"),
    *("spreadsheet", "photo album", "football match", "camping trip", "piano piece", "letter", "map of the town"),
)
PLACES = (
    *("near the station", "behind the school", "at the lake", "in the village", "on the market square"),
    *("in the afternoon", "before breakfast", "during the holidays", "after the rain", "on Sunday morning"),
)
QUESTIONS = (
    "Could you help me write a short note about it?",
    "What would be a good way to begin?",
    "How long does something like this usually take?",
    "Can you suggest three ideas for next week?",
    "Please summarise this in two sentences.",
    "Which of these would you choose, and why?",
)


def text(choose: random.Random, fewest: int, most: int) -> str:
    """Sentences of at least `fewest` and about `most` words at the most, a question at the end."""
    wanted = choose.randint(fewest, most)
    ending = choose.choice(QUESTIONS)
    sentences: list[str] = []
    count = len(ending.split())
    while count < wanted:
        sentence = (
            f"{choose.choice(SUBJECTS)} {choose.choice(VERBS)} the {choose.choice(ADJECTIVES)} {choose.choice(NOUNS)}"
            f" {choose.choice(PLACES)}"
        )
        sentences.append(sentence[0].upper() + sentence[1:] + ".")
        count += len(sentence.split())
    return " ".join([*sentences, ending])


def whole_context(choose: random.Random, context: int) -> str:
    """Words that are one token each in Llama 4's vocabulary, as many as leave room for prompt and answer."""
    words = ("hay", "bread", "river", "stone", "cloud", "paper")
    return " ".join(choose.choice(words) for _ in range(context - RESERVED_TOKENS))


def picture(choose: random.Random, size: tuple[int, int]) -> dict[str, Any]:
    """A JPEG of coarse coloured noise: as large as a photograph of its size, and no two alike."""
    width, height = size
    grain = Image.frombytes("RGB", (width // 8, height // 8), choose.randbytes(width // 8 * (height // 8) * 3))
    buffer = io.BytesIO()
    grain.resize(size, Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=85)
    url = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


@dataclass(frozen=True, slots=True)
class Load:
    """Named shares of kinds of content.

    A kind is short, long, repeated, whole (which fills a context of `context` tokens) or imageN, N pictures and a text.
    """

    name: str
    shares: Mapping[str, float]
    context: int = 8192

    @property
    def has_images(self) -> bool:
        return any(kind.startswith("image") for kind in self.shares)

    @property
    def goodput_limit_ms(self) -> float:
        return 500.0 if self.has_images else 100.0

    def contents(self, seed: int, salt: str) -> Iterator[Content]:
        """Endless. Equal seeds give equal contents but for `salt`, which stands in front of each and is in its pixels.

        Contenders that share an engine get salts of their own, or the second one would find what the first computed.
        """
        choose = random.Random(seed)
        kinds, weights = list(self.shares), list(self.shares.values())
        for number in range(1_000_000_000):
            kind = choose.choices(kinds, weights)[0]
            if kind == "repeated":
                yield _repeated(choose, salt)
                continue
            if kind == "whole":
                yield whole_context(random.Random(f"{salt}-{seed}-{number}"), self.context)
                continue
            limits = LONG_WORDS if kind == "long" else SHORT_WORDS
            words = f"Note {salt}-{seed}-{number}. {text(choose, *limits)}"
            if not kind.startswith("image"):
                yield words
                continue
            pixels = random.Random(f"{salt}-{seed}-{number}")
            pictures = [picture(pixels, choose.choice(PICTURE_SIZES)) for _ in range(int(kind.removeprefix("image")))]
            yield [*pictures, {"type": "text", "text": words}]


def _repeated(choose: random.Random, salt: str) -> str:
    """One of a small pool; the n-th likeliest is asked n times more rarely than the first, as in real traffic."""
    weights = [1 / rank for rank in range(1, REPEATED_POOL + 1)]
    number = choose.choices(range(REPEATED_POOL), weights)[0]
    return f"Note {salt}-{number}. {text(random.Random(number), *SHORT_WORDS)}"


LOADS = {
    "short": {"short": 1.0},
    "long": {"long": 1.0},
    "image1": {"image1": 1.0},
    "image3": {"image3": 1.0},
    "image5": {"image5": 1.0},
    "mixed": {"short": 0.8, "long": 0.1, "image1": 0.1},
    "repeated": {"repeated": 1.0},
    "whole": {"whole": 1.0},
}


def parse_mix(spec: str) -> dict[str, float]:
    """`short=70,long=10,image1=20` as shares that add up to 1. Raises ValueError."""
    weights: dict[str, float] = {}
    for item in spec.split(","):
        kind, separator, weight = item.partition("=")
        known = kind in ("short", "long", "repeated", "whole") or (kind.startswith("image") and kind[5:].isdigit())
        if not separator or not known or not float(weight) > 0 or kind in weights:
            raise ValueError(f"{item!r} is no share of a mix; write for example short=70,long=10,image1=20")
        weights[kind] = float(weight)
    total = sum(weights.values())
    return {kind: weight / total for kind, weight in weights.items()}
