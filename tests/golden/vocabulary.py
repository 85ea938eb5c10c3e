"""The vocabularies that prompts are tested with, each built once for the session."""

from collections.abc import Iterable
from functools import cache, cached_property

from tokenizers import Tokenizer

from server.checkpoints.profile import SHIPPED
from server.families.tokenizer import PromptTokenizer

NAMES = ("llama 4", "pocket")


class Vocabulary:
    """One vocabulary, in both ways of reading: the server's, and the one of engines that know no scaffold."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.ours = PromptTokenizer(tokenizer)
        self.control_ids = {token.content: id_ for id_, token in tokenizer.get_added_tokens_decoder().items()}

    @cached_property
    def control_id_set(self) -> frozenset[int]:
        return frozenset(self.control_ids.values())

    def controls(self, ids: Iterable[int]) -> list[int]:
        """The control tokens among `ids`, in order."""
        return [id_ for id_ in ids if id_ in self.control_id_set]

    def official_ids(self, text: str) -> list[int]:
        """The ids of a whole prompt as the official path writes it: every control token in the text counts."""
        self._tokenizer.encode_special_tokens = False
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        finally:
            self._tokenizer.encode_special_tokens = True

    def text(self, ids: Iterable[int]) -> str:
        """What `ids` stand for, control tokens included."""
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)


@cache
def vocabulary(name: str) -> Vocabulary:
    if name == "pocket":
        return Vocabulary(Tokenizer.from_file(str(SHIPPED / "pocket" / "tokenizer.json")))
    from tests.reference_model import llama4_tokenizer

    return Vocabulary(llama4_tokenizer())
