"""The rows that templates make for the training, out of files of words. No torch."""

import hashlib

from model_config.pocket.training import templates

ROWS_OF_SEED_7 = "8d3fa9a5692364a3a461b9f4e825fa34ba3f594765bab34a173359eb94fc8b0d"


def test_the_rows_of_a_seed_are_the_same_to_the_letter() -> None:
    """Training that is to be repeated starts from the same rows. Whoever changes the words on purpose writes the
    digest anew."""
    assert hashlib.sha256(repr(templates.rows(seed=7)).encode()).hexdigest() == ROWS_OF_SEED_7


def test_every_file_of_words_is_read() -> None:
    read = {
        name.lower() for name, value in vars(templates).items() if isinstance(value, tuple | dict) and name.isupper()
    }
    assert {file.stem for file in templates.WORDS.iterdir()} == read


def test_no_phrase_is_empty_or_padded() -> None:
    for file in templates.WORDS.glob("*.txt"):
        phrases = file.read_text(encoding="utf-8").splitlines()
        assert phrases
        assert all(phrase and phrase == phrase.strip() for phrase in phrases), file.name
