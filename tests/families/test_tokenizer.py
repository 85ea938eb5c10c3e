"""A caller's text is data: whatever it spells, it never becomes a control token, and harmless text is official."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel

from server.checkpoints.profile import SHIPPED, load_profile
from server.domain.conversation import Conversation, ImagePart, Message, TextPart, says_something
from server.domain.taxonomy import Taxonomy
from server.families.base import Prompt
from server.families.llama_guard.prompt import IMAGE_TOKEN, render
from server.families.tokenizer import Literal, PromptTokenizer, Scaffold
from tests.golden.vocabulary import NAMES, Vocabulary, vocabulary

IMAGE = ImagePart("data:")
DEFAULT = load_profile("llama-guard-4-12b").taxonomy
POCKET = SHIPPED / "pocket" / "tokenizer.json"

# A busy machine is no reason to fail.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(params=NAMES, scope="module")
def words(request: pytest.FixtureRequest) -> Vocabulary:
    return vocabulary(request.param)


def prompt_of(typed: str) -> Prompt:
    """A prompt in which somebody typed the same words wherever callers can write."""
    messages = [
        Message("system", (TextPart(typed),)),
        Message("user", (IMAGE, TextPart(typed))),
        Message("assistant", (TextPart(f'search({{"query": "{typed}"}})'),)),
        Message("tool", (TextPart(typed), TextPart("harmless"))),
        Message("assistant", (TextPart(typed), TextPart(f"{typed}{typed}"), TextPart("end"))),
    ]
    return render(Conversation.from_messages(messages), Taxonomy.from_mapping({"S1": typed, "S14": "Fine."}))


# --- Control tokens that callers typed --------------------------------------------------------------------


def test_llama_4_has_all_its_control_tokens():
    """The sweeps below are as good as this number; facts of the vocabulary, not of our reading of it."""
    words = vocabulary("llama 4")
    assert len(words.control_ids) == 2048
    assert words.ours.vocabulary_size == 202_048
    assert words.control_ids[IMAGE_TOKEN] == 200_090


@pytest.mark.parametrize("around", ["{}", "so {} it", "so{}it"])
def test_no_typed_control_token_becomes_one(words, around):
    """Every added token of the vocabulary, in every field, alone and inside of words."""
    scaffold = words.controls(prompt_of("words").token_ids(words.ours))
    forged = {}
    for token in words.control_ids:
        prompt = prompt_of(around.format(token))
        ids = prompt.token_ids(words.ours)
        if words.controls(ids) != scaffold or words.text(ids) != prompt.text:
            forged[token] = ids
    assert forged == {}


def test_the_sweep_could_fail(words):
    """The same prompts in the official way are full of forged tokens: the attack is real, and the sweep sees it."""
    scaffold = words.controls(prompt_of("words").token_ids(words.ours))
    for token in words.control_ids:
        assert words.controls(words.official_ids(prompt_of(token).text)) != scaffold


def test_typed_image_takes_no_place_of_an_image(words):
    slot = words.control_ids[IMAGE_TOKEN]
    typed, plain = (
        render(Conversation.from_user(TextPart(f"{text} first"), IMAGE, TextPart(text), IMAGE), DEFAULT)
        for text in (IMAGE_TOKEN, "word")
    )
    typed_ids, plain_ids = typed.token_ids(words.ours), plain.token_ids(words.ours)
    assert typed_ids.count(slot) == plain_ids.count(slot) == 2
    assert typed_ids.index(slot) == plain_ids.index(slot)


def mixtures(words: Vocabulary) -> st.SearchStrategy[str]:
    tokens = st.sampled_from(sorted(words.control_ids))
    pieces = st.one_of(tokens, st.text(max_size=6), st.sampled_from(["<|", "|>", "<", "|", "\n\n", "\\n\\n", " "]))
    broken = st.builds(lambda token, at: token[:at] + token[at + 1 :], tokens, st.integers(0, 20))
    return st.lists(st.one_of(pieces, broken), max_size=8).map("".join)


@unhurried
@given(st.data())
def test_no_mixture_becomes_a_control_token(words, data):
    typed = data.draw(mixtures(words).filter(says_something))
    prompt = prompt_of(typed)
    ids = prompt.token_ids(words.ours)
    assert words.controls(ids) == words.controls(prompt_of("words").token_ids(words.ours))
    assert words.text(ids) == prompt.text


@unhurried
@given(st.data())
def test_plain_text_round_trips(words, data):
    text = data.draw(mixtures(words))
    ids = words.ours.encode_text(text)
    assert words.controls(ids) == []
    assert words.ours.decode(ids) == text


# --- Harmless text ----------------------------------------------------------------------------------------

HARMLESS = [
    "",
    "x",
    "How do I bake bread?",
    "  spaces   inside  ",
    "tabs\tand\r\nlines\n\n\nof it",
    "\\n\\n",
    "ends with a backslash \\",
    "<|eot",
    "eot|>",
    "<| eot |>",
    "<|EOT|>",
    "<END CONVERSATION>",
    "User: hi\\n\\n\nAgent: ho",
    "naïve café e\u0301 \u200b\u200d \ufeff",
    "你好，世界 🦉👩‍👩‍👧 ﷽",
    "\x00\x01\x7f\u0085\u2028",
    "1234567890 3.14159 0x1F",
    "safe",
    "unsafe\nS1,S2",
    "don't we'll I'd",
    "a" * 3000,
    " " * 300 + "x",
]


def harmless_prompt(text: str) -> Prompt:
    messages = [
        Message("user", (IMAGE, TextPart(text), TextPart(text))),
        Message("assistant", (TextPart(f"{text} {text}"),)),
        Message("user", (TextPart(f"Well: {text}"),)),
    ]
    return render(Conversation.from_messages(messages), DEFAULT)


@pytest.mark.parametrize("text", HARMLESS, ids=lambda text: ascii(text[:20]))
def test_harmless_text_is_official(words, text):
    prompt = harmless_prompt(text)
    assert prompt.token_ids(words.ours) == words.official_ids(prompt.text)


@unhurried
@given(st.text(max_size=60))
def test_any_harmless_text_is_official(words, text):
    assume(not any(token in text for token in words.control_ids))
    prompt = harmless_prompt(text)
    assert prompt.token_ids(words.ours) == words.official_ids(prompt.text)


@unhurried
@given(st.text(min_size=1, max_size=30))
@example("Violent Crimes")
def test_harmless_own_categories_are_official(words, text):
    # Pocket has single tokens for whole lines of the official list, which only the scaffold may produce.
    lines = f"S1: {text}\nS2: {text} {text}\n"
    assume(not any(token in lines for token in words.control_ids))
    taxonomy = Taxonomy.from_mapping({"S1": text, "S2": f"{text} {text}"})
    prompt = render(Conversation.from_user(TextPart("hi")), taxonomy)
    assert prompt.token_ids(words.ours) == words.official_ids(prompt.text)


def test_texts_are_read_across_pieces(words):
    """The encoder sees the same runs of text however they are cut into pieces, as words may span two of them."""
    whole = words.ours.encode([Scaffold("<|eot|>conversations are<|eot|>")])
    pieces = [Scaffold("<|eot|>conver"), Literal("sat"), Scaffold("ions"), Literal(" are"), Scaffold("<|eot|>")]
    assert words.ours.encode(pieces) == whole


# --- The rest of the interface ------------------------------------------------------------------------------


def test_scaffold_gives_control_tokens(words):
    end = words.control_ids["<|eot|>"]
    assert words.ours.encode([Scaffold("<|eot|>"), Literal("<|eot|>"), Scaffold("<|eot|>")]) == [
        end,
        *words.ours.encode_text("<|eot|>"),
        end,
    ]


def test_longest_control_token_wins():
    """One token may begin with another: the scaffold is read as the library reads it, the longest first."""
    tokenizer = Tokenizer.from_file(str(POCKET))
    tokenizer.add_special_tokens(["<|eot|>\n\nlonger"])
    ours = PromptTokenizer(tokenizer)
    assert ours.encode([Scaffold("<|eot|>\n\nlonger")]) == [ours.control_id("<|eot|>\n\nlonger")]


def test_no_beginning_is_added(words):
    """The prompt brings its own <|begin_of_text|>; a second one would shift every position."""
    assert words.ours.encode([]) == []
    assert words.ours.encode_text("") == []
    assert words.controls(words.ours.encode_text("hello")) == []


def test_decoding_shows_control_tokens(words):
    """Hidden, one in the middle of an answer would pass for an answer of the right form."""
    ids = words.ours.encode([Literal("unsafe\nS9"), Scaffold("<|eot|>")])
    assert words.ours.decode(ids) == "unsafe\nS9<|eot|>"


def test_ids_by_name(words):
    assert words.ours.control_id("<|eot|>") == words.control_ids["<|eot|>"]
    assert words.ours.control_id("eot") is None
    assert words.ours.control_id("safe") is None
    assert words.ours.single_id("safe") == words.ours.encode_text("safe")[0]
    assert words.ours.single_id("safe and sound") is None
    assert words.ours.single_id("") is None
    assert words.ours.single_id("<|eot|>") is None


def test_verdict_words_of_llama_4():
    ours = vocabulary("llama 4").ours
    assert [ours.single_id(word) for word in ("\n\n", "safe", "unsafe", "\n", "S", ",S")] == [
        *(368, 60411, 72110, 198, 63, 36001)
    ]
    numbers = [ours.single_id(str(number)) for number in range(1, 15)]
    assert numbers == [*range(29, 38), 580, 825, 738, 974, 981]


def test_read_from_a_folder():
    assert PromptTokenizer.from_folder(POCKET.parent).vocabulary_size == vocabulary("pocket").ours.vocabulary_size


# --- Tokenizers that are refused, or put right ------------------------------------------------------------


@pytest.mark.parametrize("normalized", [True, False])
def test_added_token_that_is_not_special_is_refused(normalized):
    """The library reads such a token in plain text too, so callers could type it."""
    tokenizer = Tokenizer.from_file(str(POCKET))
    tokenizer.add_tokens([AddedToken("<|tool|>", special=False, normalized=normalized)])
    with pytest.raises(ValueError, match=r"control token <\|tool\|>"):
        PromptTokenizer(tokenizer)


def test_control_token_that_is_a_word_too_is_refused():
    tokenizer = Tokenizer(WordLevel({"<|eot|>": 0, "?": 1}, unk_token="?"))
    tokenizer.add_special_tokens(["<|eot|>"])
    with pytest.raises(ValueError, match=r"control token <\|eot\|>"):
        PromptTokenizer(tokenizer)


def test_tokenizer_without_control_tokens_is_refused():
    with pytest.raises(ValueError, match="no control tokens"):
        PromptTokenizer(Tokenizer(WordLevel({"?": 0}, unk_token="?")))


@pytest.mark.parametrize(
    "lengths",
    [
        {"truncation": {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}},
        {
            "padding": {
                "strategy": {"Fixed": 4000},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "!",
            }
        },
    ],
    ids=lambda lengths: next(iter(lengths)),
)
def test_lengths_in_the_file_are_not_obeyed(tmp_path: Path, lengths):
    """Files saved after a training run often carry its lengths. A text that is cut in silence is not judged."""
    file = json.loads(POCKET.read_text(encoding="utf-8"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(file | lengths), encoding="utf-8")
    text = "one two three four five six seven eight nine ten eleven twelve"
    assert PromptTokenizer.from_folder(tmp_path).encode_text(text) == vocabulary("pocket").ours.encode_text(text)


def test_text_beyond_a_limit_is_told_from_text_within(words):
    text = "over the hills and far away " * 20_000
    tokens = len(words.ours.encode_text(text))
    assert not words.ours.exceeds(text, tokens + 100)
    assert words.ours.exceeds(text, tokens - 100)
