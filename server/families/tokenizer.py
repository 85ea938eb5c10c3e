"""Text to token ids, such that a caller's text can never become a control token.

Llama 4's tokenizer has 2,048 added tokens (`<|eot|>`, `<|image|>`, ...). Here only the scaffold may produce them: the
scaffold is cut at the added tokens it contains, and everything between two of them, the caller's text included, is
encoded as plain text. Cutting nowhere else keeps the ids of benign text equal to those of the official template,
because the byte-pair encoder sees the same runs of text.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokenizers import Tokenizer

from server.families.byte_pairs import BYTES, LONG_TEXT, byte_pair_encoding

_SLICE = 65_536

_REMEMBERED = 512
"""Pieces of scaffold whose ids, or places to cut, are kept: a few for each role, two openings for each selection of
categories."""


@dataclass(frozen=True, slots=True)
class Scaffold:
    """Text of the template: added tokens in it are control tokens.

    What stands `apart` is encoded by itself and remembered: its ends are places that no token reaches across.
    """

    text: str
    apart: bool = False


@dataclass(frozen=True, slots=True)
class Literal:
    """Text that somebody else wrote: encoded as plain text, whatever it contains."""

    text: str


Piece = Scaffold | Literal


class PromptTokenizer:
    """Encodes prompts made of pieces, and decodes answers. Safe to share between threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Take over `tokenizer`: from here on it reads added tokens in plain text as text, and never cuts or pads.

        Raises ValueError when an added token survives in plain text, since then callers could forge it, and when there
        is none at all.
        """
        self._tokenizer = tokenizer
        self._tokenizer.encode_special_tokens = True
        # A tokenizer.json may carry the lengths that its author trained with.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = {token.content: id_ for id_, token in tokenizer.get_added_tokens_decoder().items()}
        if not added:
            raise ValueError("the tokenizer has no control tokens, of which the prompt is made")
        self._control_ids = added
        longest_first = sorted(added, key=len, reverse=True)
        control_pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._cut = lru_cache(_REMEMBERED)(control_pattern.split)
        self._byte_pairs = byte_pair_encoding(tokenizer)
        control_ids = frozenset(added.values())
        for content in added:
            if not control_ids.isdisjoint([*self.encode_text(content), *self._encode_by_library(content)]):
                raise ValueError(f"the tokenizer turns plain text into the control token {content}")
        self._encode_apart = lru_cache(_REMEMBERED)(lambda text: self.encode_whole([Scaffold(text)]))

    @classmethod
    def from_folder(cls, folder: Path) -> "PromptTokenizer":
        """Read `tokenizer.json` of a checkpoint."""
        return cls(Tokenizer.from_file(str(folder / "tokenizer.json")))

    def encode(self, pieces: Iterable[Piece]) -> list[int]:
        """Token ids of the pieces in order."""
        ids: list[int] = []
        between: list[Piece] = []
        for piece in pieces:
            if isinstance(piece, Scaffold) and piece.apart:
                ids += self.encode_whole(between)
                ids += self._encode_apart(piece.text)
                between.clear()
            else:
                between.append(piece)
        return ids + self.encode_whole(between)

    def encode_whole(self, pieces: Iterable[Piece]) -> list[int]:
        """The same, cut at control tokens only: what `encode` must agree with."""
        ids: list[int] = []
        run: list[str] = []
        for piece in pieces:
            if isinstance(piece, Literal):
                run.append(piece.text)
                continue
            for index, text in enumerate(self._cut(piece.text)):
                if index % 2 == 0:
                    run.append(text)
                else:
                    ids += self.encode_text("".join(run))
                    ids.append(self._control_ids[text])
                    run.clear()
        return ids + self.encode_text("".join(run))

    def exceeds(self, text: str, limit: int) -> bool:
        """Whether `text` takes clearly more than `limit` tokens, found out without encoding much more than that.

        Megabytes of text would take gigabytes of memory as tokens. Cutting adds a token or two at each cut, so this is
        for limits well above the one that is meant.
        """
        tokens = 0
        for start in range(0, len(text), _SLICE):
            tokens += len(self.encode_text(text[start : start + _SLICE]))
            if tokens > limit:
                return True
        return False

    def encode_text(self, text: str) -> list[int]:
        """Token ids of plain text, never a control token."""
        if not text:
            return []
        if self._byte_pairs is not None and len(text) <= LONG_TEXT:
            return self._byte_pairs.encode_ordinary(text)
        return self._encode_by_library(text)

    def _encode_by_library(self, text: str) -> list[int]:
        # encode() would do the same, but hold Python's lock: a long text would stop every other thread.
        ids: list[int] = self._tokenizer.encode_batch([text], add_special_tokens=False)[0].ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, control tokens included by name."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def content(self, id_: int) -> bytes:
        """The bytes of one token, which may end in the middle of a character; of a control token its name."""
        token: str = self._tokenizer.id_to_token(id_) or ""
        if token in self._control_ids or not BYTES.keys() >= set(token):
            return self.decode([id_]).encode()
        return bytes(BYTES[character] for character in token)

    def control_id(self, token: str) -> int | None:
        """Id of an added token, None when the vocabulary has none of that name."""
        return self._control_ids.get(token)

    def single_id(self, text: str) -> int | None:
        """Id of a plain text that is exactly one token, else None."""
        ids = self.encode_text(text)
        return ids[0] if len(ids) == 1 else None

    @property
    def vocabulary_size(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))
