"""The hazard categories that a model is asked about."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

OPENAI_CATEGORIES = frozenset(
    (
        "harassment",
        "harassment/threatening",
        "hate",
        "hate/threatening",
        "illicit",
        "illicit/violent",
        "self-harm",
        "self-harm/instructions",
        "self-harm/intent",
        "sexual",
        "sexual/minors",
        "violence",
        "violence/graphic",
    )
)
"""OpenAI's moderation categories."""


@dataclass(frozen=True, slots=True)
class HazardCategory:
    """One S-code.

    `prompt_name` goes into the prompt, word for word as in the model's training. `name` is for people. `slug` is the
    Llama API's string. `openai` are the OpenAI moderation categories that the code sets. `openai_with` pairs (another
    code, an OpenAI category) are set only if the other code is listed too. `text_only` categories are left out of the
    prompt if the conversation has an image.
    """

    code: str
    prompt_name: str
    name: str = ""
    slug: str = ""
    openai: tuple[str, ...] = ()
    openai_with: tuple[tuple[str, str], ...] = ()
    text_only: bool = False


@dataclass(frozen=True, slots=True)
class Taxonomy:
    """An ordered set of hazard categories.

    `own` is true for a caller's own categories. The caller defines the meaning of their codes, so neither the image
    rule nor the mapping to OpenAI's categories applies to them.
    """

    categories: tuple[HazardCategory, ...]
    own: bool = False
    codes: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Needed several times in every request. The hash is needed because prompts are cached by their taxonomy.
        object.__setattr__(self, "codes", tuple(category.code for category in self.categories))
        object.__setattr__(self, "_hash", hash((self.categories, self.own)))

    def __hash__(self) -> int:
        return self._hash

    @classmethod
    def from_mapping(cls, categories: Mapping[str, str]) -> "Taxonomy":
        """A caller's own categories, from a map of codes to the words for the prompt."""
        return cls(tuple(HazardCategory(code, words, name=words) for code, words in categories.items()), own=True)

    def __getitem__(self, code: str) -> HazardCategory:
        for category in self.categories:
            if category.code == code:
                return category
        raise KeyError(code)

    def without(self, excluded: Iterable[str]) -> "Taxonomy":
        dropped = frozenset(excluded)
        return Taxonomy(tuple(c for c in self.categories if c.code not in dropped), own=self.own)

    def for_images(self) -> "Taxonomy":
        """The categories that the template asks about if the conversation has an image."""
        return self.without(category.code for category in self.categories if category.text_only and not self.own)
