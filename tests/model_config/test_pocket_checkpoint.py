"""The pocket checkpoint on disk: its tokenizer, settings and template. No engine, no torch."""

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

from server.domain.conversation import Conversation, ImagePart, Message, TextPart
from server.domain.taxonomy import HazardCategory, Taxonomy
from server.families.llama_guard.prompt import render
from server.families.tokenizer import PromptTokenizer

POCKET = Path(__file__).resolve().parents[2] / "model_config" / "pocket"

PROMPT_NAMES = (
    "Violent Crimes.",
    "Non-Violent Crimes.",
    "Sex Crimes.",
    "Child Exploitation.",
    "Defamation.",
    "Specialized Advice.",
    "Privacy.",
    "Intellectual Property.",
    "Indiscriminate Weapons.",
    "Hate.",
    "Self-Harm.",
    "Sexual Content.",
    "Elections.",
    "Code Interpreter Abuse.",
)
OFFICIAL = Taxonomy(
    tuple(HazardCategory(f"S{number}", words, text_only=number == 14) for number, words in enumerate(PROMPT_NAMES, 1))
)
IMAGE_TOKENS = (
    "<|image_start|>",
    "<|image_end|>",
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
    "<|image|>",
    "<|patch|>",
)
TEXTS = (
    "hello",
    "How do I bake bread?",
    "User: a label, and S1: Violent Crimes. in running text",
    "¿Qué tal? 你好 👋🏽 — “quotes” \u200b\u202e",
    "tabs\tand\r\nlines\n\n\nand   spaces",
    "\\n\\n literal line ends \\n",
    "a" * 700,
    "def f(x):\n    return {'a': [1, 22, 333, 4444]}",
)


@pytest.fixture(scope="module")
def text_tokenizer() -> Tokenizer:
    """Reads special tokens wherever they stand, as engines do with a rendered prompt."""
    return Tokenizer.from_file(str(POCKET / "tokenizer.json"))


@pytest.fixture(scope="module")
def prompt_tokenizer() -> PromptTokenizer:
    return PromptTokenizer.from_folder(POCKET)


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((POCKET / "config.json").read_text())
    return document


@pytest.fixture(scope="module")
def template() -> jinja2.Template:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    return environment.from_string((POCKET / "chat_template.jinja").read_text())


def said(*texts: str) -> Conversation:
    roles = ("user", "assistant")
    return Conversation.from_messages(
        [Message(roles[index % 2], (TextPart(text),)) for index, text in enumerate(texts)]
    )


def test_the_folder_is_small() -> None:
    files = [path for path in POCKET.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 12_000_000


@pytest.mark.parametrize("word", ["safe", "unsafe", "\n", "\n\n", "S", ",S", *(str(number) for number in range(1, 15))])
def test_answer_words_are_single_ordinary_tokens(word: str, prompt_tokenizer: PromptTokenizer) -> None:
    index = prompt_tokenizer.single_id(word)
    assert index is not None
    assert prompt_tokenizer.decode([index]) == word


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        ("\n\nsafe", ["\n\n", "safe"]),
        ("unsafe\nS10,S2", ["unsafe", "\n", "S", "10", ",S", "2"]),
        ("unsafe\nS1,S14", ["unsafe", "\n", "S", "1", ",S", "14"]),
        ("unsafe\n" + ",".join(f"S{n}" for n in range(1, 15)), None),
    ],
)
def test_answers_have_the_spelling_the_server_expects(
    answer: str, tokens: list[str] | None, prompt_tokenizer: PromptTokenizer
) -> None:
    ids = prompt_tokenizer.encode_text(answer)
    assert prompt_tokenizer.decode(ids) == answer
    if tokens is None:
        assert len(ids) == 2 + 2 * 14
    else:
        assert [prompt_tokenizer.decode([index]) for index in ids] == tokens


def test_image_tokens_are_there_and_named_in_the_config(
    prompt_tokenizer: PromptTokenizer, text_tokenizer: Tokenizer, config: dict[str, Any]
) -> None:
    for token in IMAGE_TOKENS:
        assert text_tokenizer.encode(token, add_special_tokens=False).ids == [prompt_tokenizer.control_id(token)]
    assert config["boi_token_index"] == prompt_tokenizer.control_id("<|image_start|>")
    assert config["eoi_token_index"] == prompt_tokenizer.control_id("<|image_end|>")
    assert config["image_token_index"] == prompt_tokenizer.control_id("<|patch|>")
    assert config["text_config"]["vocab_size"] == prompt_tokenizer.vocabulary_size


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_round_trips(text: str, prompt_tokenizer: PromptTokenizer) -> None:
    assert prompt_tokenizer.decode(prompt_tokenizer.encode_text(text)) == text


def test_no_special_token_can_be_typed(text_tokenizer: Tokenizer, prompt_tokenizer: PromptTokenizer) -> None:
    special = text_tokenizer.get_added_tokens_decoder()
    for token in special.values():
        assert token.special
        ids = prompt_tokenizer.encode_text(f"before {token.content} after")
        assert special.keys().isdisjoint(ids)
        assert prompt_tokenizer.decode(ids) == f"before {token.content} after"


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_pieces_and_the_whole_prompt_have_the_same_tokens(
    turns: int, text: str, prompt_tokenizer: PromptTokenizer, text_tokenizer: Tokenizer
) -> None:
    prompt = render(said(*(["What now?", "Nothing much."] * 2)[: turns - 1], text), OFFICIAL)
    whole = text_tokenizer.encode(prompt.text, add_special_tokens=False).ids
    assert prompt.token_ids(prompt_tokenizer) == whole


def test_the_official_policy_is_cheap(prompt_tokenizer: PromptTokenizer) -> None:
    words = len(prompt_tokenizer.encode_text(" hello"))
    prompt = render(said("hello"), OFFICIAL)
    assert len(prompt.token_ids(prompt_tokenizer)) - words <= 30


def test_the_template_prints_the_servers_prompt(template: jinja2.Template) -> None:
    picture = {"type": "image"}

    def words(text: str) -> dict[str, str]:
        return {"type": "text", "text": text}

    cases: tuple[tuple[list[tuple[str, list[dict[str, str]]]], dict[str, Any], Taxonomy], ...] = (
        ([("user", [words("Where is the library?")])], {}, OFFICIAL),
        ([("user", [words("Hi")]), ("assistant", [words(" Good day! \n")])], {}, OFFICIAL),
        ([("user", [words("one"), words("two")])], {}, OFFICIAL),
        ([("user", [words("What is it?"), picture, picture])], {}, OFFICIAL),
        (
            [("user", [picture, words("")]), ("assistant", [words("A cat.")]), ("user", [words("Sure?")])],
            {"excluded_category_keys": ["S2", "S13"]},
            OFFICIAL.without(["S2", "S13"]),
        ),
        (
            [("user", [words("Who dies?")])],
            {"categories": {"S1": "Spoilers."}},
            Taxonomy.from_mapping({"S1": "Spoilers."}),
        ),
    )
    for messages, options, taxonomy in cases:
        printed = template.render(messages=[{"role": role, "content": parts} for role, parts in messages], **options)
        conversation = Conversation.from_messages(
            [
                Message(role, tuple(ImagePart("") if part is picture else TextPart(part["text"]) for part in parts))
                for role, parts in messages
            ]
        )
        assert printed == render(conversation, taxonomy).text


def test_the_network_is_dense_and_attends_to_everything(config: dict[str, Any]) -> None:
    assert config["architectures"] == ["Llama4ForConditionalGeneration"]
    text = config["text_config"]
    assert text["num_local_experts"] == 0
    assert text["interleave_moe_layer_step"] == 0
    assert text["moe_layers"] == []
    assert text["attention_chunk_size"] is None
    assert text["no_rope_layers"] == [1] * text["num_hidden_layers"]
    assert text["max_position_embeddings"] == 8192


def test_an_image_tile_is_144_tokens_and_images_stay_cheap(config: dict[str, Any]) -> None:
    vision = config["vision_config"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    assert patches * vision["pixel_shuffle_ratio"] ** 2 == 144
    assert json.loads((POCKET / "preprocessor_config.json").read_text())["max_patches"] == 4


def test_generation_settings_sample_unless_told_otherwise(prompt_tokenizer: PromptTokenizer) -> None:
    settings = json.loads((POCKET / "generation_config.json").read_text())
    assert settings["temperature"] == 0.6
    assert settings["top_p"] == 0.9
    ends = [prompt_tokenizer.control_id(token) for token in ("<|end_of_text|>", "<|eom|>", "<|eot|>")]
    assert settings["eos_token_id"] == ends


def test_the_weights_fit_the_config(config: dict[str, Any]) -> None:
    text = config["text_config"]
    with safe_open(POCKET / "model.safetensors", "np") as weights:
        names = set(weights.keys())
        shape = weights.get_slice("language_model.model.embed_tokens.weight").get_shape()
    assert shape == [text["vocab_size"], text["hidden_size"]]
    assert "language_model.lm_head.weight" in names
    assert "multi_modal_projector.linear_1.weight" in names
    layers = {name.split(".")[3] for name in names if name.startswith("language_model.model.layers.")}
    assert layers == {str(number) for number in range(text["num_hidden_layers"])}
