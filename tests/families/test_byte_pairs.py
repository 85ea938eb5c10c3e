"""tiktoken gives the ids of the tokenizers library, or is not used at all."""

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from server.checkpoints.profile import SHIPPED
from server.families.byte_pairs import LONG_TEXT, byte_pair_encoding
from server.families.tokenizer import PromptTokenizer
from tests.golden.vocabulary import NAMES, vocabulary

POCKET = SHIPPED / "pocket" / "tokenizer.json"

# A busy machine is no reason to fail.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

SCRIPTS = "abcXYZ 019 .,;!?'\"\\/<>|_-\n\r\t éßŒŁ жфЯ αβΩ 中文字"
SCRIPTS += "かなカ 한글 हिन्दी ि ا ب ة עב ไทย 😀👩\u200d👧 \u0301\u00a0\u2028\u3000"


def plain(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


@pytest.fixture(params=NAMES, scope="module")
def both(request: pytest.FixtureRequest) -> tuple[PromptTokenizer, Tokenizer]:
    """Ours, and the same tokenizer as its own library runs it."""
    ours = vocabulary(request.param).ours
    assert ours._byte_pairs is not None
    return ours, ours._tokenizer


def test_every_tenth_entry_of_the_vocabulary_is_encoded_alike(both):
    ours, library = both
    entries = [ours.decode([id_]) for id_ in range(0, library.get_vocab_size(with_added_tokens=False), 10)]
    assert [text for text in entries if ours.encode_text(text) != plain(library, text)] == []


@unhurried
@given(text=st.text(max_size=300) | st.text(alphabet=SCRIPTS, max_size=300))
def test_any_text_is_encoded_alike(both, text):
    ours, library = both
    assert ours.encode_text(text) == plain(library, text)


def test_long_words_and_long_gaps_are_encoded_alike(both):
    ours, library = both
    choose = random.Random(0)
    for text in (
        *("a" * LONG_TEXT, " " * LONG_TEXT, "\n" * LONG_TEXT, "\t \n" * (LONG_TEXT // 3), "😀" * 3000),
        "".join(choose.choices(SCRIPTS, k=LONG_TEXT)),
    ):
        assert ours.encode_text(text) == plain(library, text)


def test_what_tiktoken_would_panic_on_is_encoded_too(both):
    ours, _ = both
    spaces = " " * 400_000
    assert ours.decode(ours.encode_text(spaces)) == spaces


def changed(change: Callable[[dict[str, Any]], None]) -> Tokenizer:
    """Pocket's tokenizer with a change in its file."""
    document = json.loads(POCKET.read_text())
    change(document)
    return Tokenizer.from_str(json.dumps(document))


def lowercase(document: dict[str, Any]) -> None:
    document["normalizer"] = {"type": "Lowercase"}


def one_step(document: dict[str, Any]) -> None:
    document["pre_tokenizer"] = document["pre_tokenizer"]["pretokenizers"][1]


def space_before(document: dict[str, Any]) -> None:
    document["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = True


def merged_first(document: dict[str, Any]) -> None:
    document["model"]["ignore_merges"] = False


def shuffled(document: dict[str, Any]) -> None:
    random.Random(1).shuffle(document["model"]["merges"])


def foreign_expression(document: dict[str, Any]) -> None:
    document["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\h+|[^\h]+(?<name>x)\g<name>?"


def a_byte_less(document: dict[str, Any]) -> None:
    vocabulary = document["model"]["vocab"]
    vocabulary["<unused byte>"] = vocabulary.pop("Ā")
    document["model"]["merges"] = [pair for pair in document["model"]["merges"] if "Ā" not in "".join(pair)]


def test_an_unchanged_tokenizer_is_taken():
    assert byte_pair_encoding(changed(lambda _: None)) is not None


@pytest.mark.parametrize(
    "change", [lowercase, one_step, space_before, merged_first, shuffled, foreign_expression, a_byte_less]
)
def test_a_tokenizer_of_another_kind_is_left_to_its_library(change):
    assert byte_pair_encoding(changed(change)) is None
