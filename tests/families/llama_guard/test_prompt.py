"""The prompt is the official one, to the byte and to the token.

tests/golden/prompts.json holds conversations of our own. Their texts were written by hand from the rules in
docs/prompt.md; their ids were made by Meta's tokenizer class, not by the library that the server uses. A checkout that
lies beside the shared golden file is held to its 17 official prompts too.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from server.checkpoints.profile import load_profile
from server.domain.conversation import Conversation, ImagePart, Message, TextPart
from server.domain.errors import InvalidRequest
from server.domain.policy import Policy
from server.domain.taxonomy import HazardCategory, Taxonomy
from server.families.base import Prompt
from server.families.byte_pairs import BYTES
from server.families.checks import stands_apart
from server.families.llama_guard.prompt import CONTROL_TOKENS, IMAGE_TOKEN, render
from server.families.tokenizer import Literal, PromptTokenizer, Scaffold
from tests.golden.vocabulary import NAMES, vocabulary
from tests.readings import FAMILY

ROOT = Path(__file__).parents[3]
OWN = ROOT / "tests" / "golden" / "prompts.json"
OFFICIAL = ROOT.parent / "shared" / "golden" / "golden_prompts.json"

TAXONOMY = load_profile("llama-guard-4-12b").taxonomy

IMAGE = ImagePart("data:")


def own_cases() -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads(OWN.read_text(encoding="utf-8"))
    return cases


def official_cases() -> list[dict[str, Any]]:
    """The shared file's cases in the words of ours; none where there is no such file."""
    if not OFFICIAL.exists():
        return []
    return [
        {
            "name": case["name"],
            "messages": [{"role": message["role"], "parts": message["content"]} for message in case["messages"]],
            "categories": case["options"].get("categories"),
            "excluded": case["options"].get("excluded_category_keys", []),
            "prompt": case["prompt"],
            "tokens": case["prompt_tokens"],
            "ids_sha256": case["token_ids_sha256"],
        }
        for case in json.loads(OFFICIAL.read_text(encoding="utf-8"))
    ]


def prompt_of(case: dict[str, Any]) -> Prompt:
    messages = [
        Message(
            message["role"],
            tuple(TextPart(part["text"]) if part["type"] == "text" else IMAGE for part in message["parts"]),
        )
        for message in case["messages"]
    ]
    policy = Policy(TAXONOMY, own_codes=FAMILY.own_codes).narrowed(
        categories=case.get("categories"), excluded=case.get("excluded", ())
    )
    return render(Conversation.from_messages(messages), policy.taxonomy)


def sha256_of(ids: list[int]) -> str:
    return hashlib.sha256(json.dumps(ids, separators=(",", ":")).encode()).hexdigest()


golden = pytest.mark.parametrize(
    "case", [*own_cases(), *official_cases()], ids=lambda case: f"{case['name']}, {case['ids_sha256'][:6]}"
)


@golden
def test_text_is_official(case):
    assert prompt_of(case).text == case["prompt"]


@golden
def test_ids_are_official(case):
    ids = prompt_of(case).token_ids(vocabulary("llama 4").ours)
    assert len(ids) == case["tokens"]
    assert sha256_of(ids) == case["ids_sha256"]


@pytest.mark.skipif(not OFFICIAL.exists(), reason="no shared golden file beside this checkout; our own cases cover it")
def test_official_file_is_read_whole():
    assert len(official_cases()) == 17


def test_golden_ids_can_tell_a_forged_token():
    """The one own case that the official path would judge wrongly: its caller typed control tokens."""
    (case,) = [case for case in own_cases() if case["name"] == "forged control tokens"]
    assert sha256_of(vocabulary("llama 4").official_ids(case["prompt"])) != case["ids_sha256"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("images", [0, 1, 5])
def test_one_image_token_for_each_image(name, images):
    words = vocabulary(name)
    conversation = Conversation.from_user(*[IMAGE] * images, TextPart("Compare."))
    prompt = render(conversation, TAXONOMY)
    assert prompt.token_ids(words.ours).count(words.control_ids[IMAGE_TOKEN]) == images
    assert prompt.text.count(IMAGE_TOKEN) == images


@pytest.mark.parametrize("name", NAMES)
def test_prompt_ends_at_the_header(name):
    """The answer's first token follows at once: a newline here would shift every verdict by one position."""
    words = vocabulary(name)
    prompt = render(Conversation.from_user(TextPart("hi")), TAXONOMY)
    assert prompt.text.endswith("<|header_start|>assistant<|header_end|>")
    assert prompt.token_ids(words.ours)[-1] == words.control_ids["<|header_end|>"]


def test_everything_a_caller_wrote_is_a_literal():
    """What is encoded as plain text is exactly the texts and the caller's own categories."""
    messages = [
        Message("system", (TextPart("one"),)),
        Message("user", (IMAGE, TextPart("two"))),
        Message("assistant", (TextPart("three"),)),
    ]
    prompt = render(Conversation.from_messages(messages), Taxonomy.from_mapping({"S1": "four"}))
    literals = [piece.text for piece in prompt.pieces if isinstance(piece, Literal)]
    assert literals == ["S1: four\n", "one", "two", "three"]


TEXT_ONLY = Taxonomy((HazardCategory("S1", "Shouting."), HazardCategory("S2", "Typing.", text_only=True)))


def test_text_only_categories_are_not_asked_about_images():
    with_image, without = (render(Conversation.from_user(*parts), TEXT_ONLY) for parts in ([IMAGE], [TextPart("hi")]))
    assert with_image.taxonomy.codes == ("S1",)
    assert "Typing." not in with_image.text
    assert without.taxonomy.codes == ("S1", "S2")
    assert "S2: Typing.\n" in without.text


def test_image_in_an_earlier_turn_counts():
    messages = [Message("user", (IMAGE,)), Message("assistant", (TextPart("A hat."),))]
    assert render(Conversation.from_messages(messages), TEXT_ONLY).taxonomy.codes == ("S1",)


def test_images_without_any_category_left_are_refused():
    with pytest.raises(InvalidRequest) as caught:
        render(Conversation.from_user(IMAGE), TEXT_ONLY.without(["S1"]))
    assert caught.value.param == "policy"


# --- What is encoded once ---------------------------------------------------------------------------------

words_and_edges = st.text(max_size=30) | st.sampled_from(
    ["\n", " ", "\\n\\n\n\n", "User: ", "<END CONVERSATION>", "'s", "/"]
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.parametrize("name", NAMES)
@given(texts=st.lists(words_and_edges, min_size=1, max_size=4), answered=st.booleans(), excluded=st.booleans())
def test_the_scaffold_by_itself_gives_the_ids_of_the_whole(name, texts, answered, excluded):
    ours = vocabulary(name).ours
    messages = [Message("user", (*map(TextPart, texts), TextPart("x")))]
    messages += [Message("assistant", (TextPart("y"), *map(TextPart, texts)))] if answered else []
    taxonomy = TAXONOMY.without(["S5"]) if excluded else TAXONOMY
    pieces = render(Conversation.from_messages(messages), taxonomy).pieces
    assert ours.encode(pieces) == ours.encode_whole(pieces)


def test_preamble_and_closing_are_encoded_once(monkeypatch):
    ours = PromptTokenizer(vocabulary("llama 4").ours._tokenizer)
    encoded: list[str] = []
    encode_text = ours.encode_text

    def noted(text: str) -> list[int]:
        encoded.append(text)
        return encode_text(text)

    monkeypatch.setattr(ours, "encode_text", noted)
    for text in ("first", "second", "third"):
        render(Conversation.from_user(TextPart(text)), TAXONOMY).token_ids(ours)
    assert len([text for text in encoded if "BEGIN UNSAFE CONTENT" in text]) == 1
    assert len([text for text in encoded if "END CONVERSATION" in text]) == 1
    assert [text for text in encoded if text.startswith("User: ")] == [
        f"User: {text}\\n\\n\n\n" for text in ("first", "second", "third")
    ]


def test_own_categories_are_never_taken_for_scaffold():
    """A caller's words for a category may join with what stands beside them: such a preamble is encoded as a whole."""
    own = Taxonomy.from_mapping({"S1": "Mine.", "S2": "Others."})
    pieces = render(Conversation.from_user(TextPart("x")), own).pieces
    assert [piece.text for piece in pieces if isinstance(piece, Scaffold) and piece.apart] == [pieces[-1].text]


@pytest.mark.parametrize("name", NAMES)
def test_llama_guard_tokenizers_let_the_scaffold_stand_apart(name):
    assert stands_apart(FAMILY, vocabulary(name).ours, TAXONOMY)


def test_a_tokenizer_that_joins_lines_with_words_is_found_out():
    """Bytes alone, and a line break that merges with the first letter of `User`, which nothing cuts apart."""
    tokens = {character: id_ for id_, character in enumerate(BYTES)} | {"ĊU": 256}
    joining = Tokenizer(BPE(tokens, [("Ċ", "U")]))
    joining.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    joining.add_special_tokens(list(CONTROL_TOKENS))
    assert not stands_apart(FAMILY, PromptTokenizer(joining), TAXONOMY)
