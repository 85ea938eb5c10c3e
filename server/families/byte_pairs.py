"""tiktoken in place of the tokenizers library, ten times faster at the same ids, where a tokenizer is of its kind.

Llama 4's vocabulary was made with tiktoken: bytes, one expression that cuts text into words, and pairs that merge in
the order of their ids. A tokenizer.json says the same at length.
"""

import json
from collections.abc import Iterator
from typing import Any

import tiktoken
from tokenizers import Tokenizer
from tokenizers.models import BPE

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = (byte for byte in range(256) if byte not in _PRINTABLE)

BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + n): byte for n, byte in enumerate(_OTHERS)}
"""How byte-level vocabularies write bytes: as themselves when they can be seen, else as characters from 256 on."""

LONG_TEXT = 16_384
"""Characters that tiktoken is given at most: its expressions panic on some hundred thousand spaces in a row."""

_EVERY = 50
"""Of the vocabulary's entries one in this many is encoded by both, to see that they agree."""


def byte_pair_encoding(tokenizer: Tokenizer) -> tiktoken.Encoding | None:
    """`tokenizer`, without its added tokens, as tiktoken runs it; None where that would not give the same ids."""
    model, pattern = tokenizer.model, _pattern(tokenizer)
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    if (
        pattern is None
        or tokenizer.normalizer is not None
        or not (isinstance(model, BPE) and model.ignore_merges)
        or model.dropout
        or model.unk_token
        or not vocabulary.keys() >= BYTES.keys()
    ):
        return None
    # No text turns into an entry with other characters than those that stand for bytes.
    spelled = ((entry, id_) for entry, id_ in vocabulary.items() if BYTES.keys() >= set(entry))
    ranks = {bytes(BYTES[character] for character in entry): id_ for entry, id_ in spelled}
    try:
        encoding = tiktoken.Encoding("guard", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    except ValueError:  # an expression that only the other engine knows
        return None
    return encoding if all(_agree(tokenizer, encoding, text) for text in _samples(ranks)) else None


def _pattern(tokenizer: Tokenizer) -> str | None:
    """The expression that cuts text into words, None where text is cut in another way."""
    if tokenizer.pre_tokenizer is None:
        return None
    steps: list[dict[str, Any]] = json.loads(tokenizer.pre_tokenizer.__getstate__()).get("pretokenizers", [])
    match steps:
        case [
            {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            return pattern
    return None


def _samples(ranks: dict[bytes, int]) -> Iterator[str]:
    """Entries of the vocabulary one by one, which nothing may merge otherwise, and in a row."""
    entries = [entry.decode("utf-8", "replace") for entry in sorted(ranks, key=ranks.__getitem__)[::_EVERY]]
    yield from entries
    row = "".join(entries)
    yield from (row[start : start + LONG_TEXT] for start in range(0, len(row), LONG_TEXT))


def _agree(tokenizer: Tokenizer, encoding: tiktoken.Encoding, text: str) -> bool:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return encoding.encode_ordinary(text) == ids
