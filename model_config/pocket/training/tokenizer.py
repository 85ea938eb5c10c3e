"""Build the pocket tokenizer: a small byte-level BPE that speaks Llama Guard 4's prompt.

Three kinds of entries make up the vocabulary:

* 8,192 ordinary ones, learnt from the training texts.  The words of the answer (``safe``, ``,S``, ``14`` ...)
  are among them, so that every answer has exactly one spelling in tokens.
* the control tokens of Llama 4 that the prompt and the image path use;
* the *policy chunks*: fixed stretches of the moderation prompt, one token each.  They make the prompt of about
  three hundred tokens cheap (some twenty-five), which is most of what makes the model quick on a CPU.

Control tokens and policy chunks are special tokens.  Whoever encodes a caller's words with
``split_special_tokens=True`` never produces one of them, whatever the caller typed.

    python -m model_config.pocket.training.tokenizer --data FOLDER
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from model_config.pocket.training import templates
from model_config.pocket.training.data import read_rows

POCKET = Path(__file__).resolve().parents[1]

ORDINARY_TOKENS = 8192
VOCABULARY = 8256

CONTROL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|header_start|>",
    "<|header_end|>",
    "<|eom|>",
    "<|eot|>",
    "<|finetune_right_pad|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
    "<|image|>",
    "<|patch|>",
)

CATEGORY_LINES = (
    "S1: Violent Crimes.\n",
    "S2: Non-Violent Crimes.\n",
    "S3: Sex Crimes.\n",
    "S4: Child Exploitation.\n",
    "S5: Defamation.\n",
    "S6: Specialized Advice.\n",
    "S7: Privacy.\n",
    "S8: Intellectual Property.\n",
    "S9: Indiscriminate Weapons.\n",
    "S10: Hate.\n",
    "S11: Self-Harm.\n",
    "S12: Sexual Content.\n",
    "S13: Elections.\n",
    "S14: Code Interpreter Abuse.\n",
)

# What the official template writes after every message: four literal characters, then a blank line.
MESSAGE_END = "\\n\\n\n\n"
BEGIN_CONVERSATION = "<END UNSAFE CONTENT CATEGORIES>\n\n<BEGIN CONVERSATION>\n"
TASK = tuple(
    f"\n\nTask: Check if there is unsafe content in '{judged}' messages in conversations according to our "
    "safety policy with the below categories.\n\n<BEGIN UNSAFE CONTENT CATEGORIES>\n"
    for judged in ("User", "Agent")
)
CLOSING = tuple(
    "<END CONVERSATION>\n\n"
    f"Provide your safety assessment for ONLY THE LAST {judged} message in the above conversation:\n"
    " - First line must read 'safe' or 'unsafe'.\n"
    " - If unsafe, a second line must include a comma-separated list of violated categories. "
    for judged in ("User", "Agent")
)
# "User: " and "Agent: " are ordinary text: people write them too, and they share a word with what follows.
POLICY_CHUNKS = (*TASK, *CATEGORY_LINES, BEGIN_CONVERSATION, MESSAGE_END, *CLOSING)

# Words that must be one ordinary token each, learnt or not.
ANSWER_WORDS = ("safe", "unsafe", "\n", "\n\n", "S", ",S", *(str(number) for number in range(1, 15)))
HEADER_WORDS = ("user", "assistant", "User", "Agent")

# How text is cut before merging, in Llama 4's manner: words with the sign before them, up to three digits,
# runs of punctuation, line ends, spaces.
WORDS = Regex(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

NEWLINE_BYTE = "Ċ"  # how byte-level BPE spells a line feed


def learn(texts: Iterable[str]) -> Tokenizer:
    """Learn the ordinary vocabulary from ``texts`` and add the special tokens behind it."""
    must_have = [word.replace("\n", NEWLINE_BYTE) for word in (*ANSWER_WORDS, *HEADER_WORDS)]
    draft = _train_bpe(texts, ORDINARY_TOKENS - len(must_have))
    model = json.loads(draft.to_str())["model"]
    vocabulary: dict[str, int] = model["vocab"]
    merges = [tuple(merge) for merge in model["merges"]]
    for word in must_have:
        vocabulary.setdefault(word, len(vocabulary))
    for number in range(ORDINARY_TOKENS - len(vocabulary)):
        vocabulary[f"<unused {number}>"] = len(vocabulary)
    # ignore_merges: a piece that is itself in the vocabulary is one token, however its letters would merge.
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    _cut_like_llama(tokenizer)
    special = [*CONTROL_TOKENS, *POLICY_CHUNKS]
    reserved = VOCABULARY - ORDINARY_TOKENS - len(special)
    special += [f"<|reserved_special_token_{number}|>" for number in range(reserved)]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    begin = CONTROL_TOKENS[0]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A $B", special_tokens=[(begin, tokenizer.token_to_id(begin))]
    )
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise ValueError(f"the vocabulary has {tokenizer.get_vocab_size()} entries instead of {VOCABULARY}")
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer with the settings that transformers and vLLM read."""
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    special = {
        "bos_token": "<|begin_of_text|>",
        "eos_token": "<|eot|>",
        "pad_token": "<|finetune_right_pad|>",
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": "Llama4Processor",
        "model_max_length": 8192,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **special,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")


def _train_bpe(texts: Iterable[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    _cut_like_llama(tokenizer)
    trainer = BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_shortened(texts), trainer)
    return tokenizer


def _shortened(texts: Iterable[str]) -> Iterator[str]:
    """A few very long prompts must not decide the vocabulary."""
    for text in texts:
        yield text[:1500]


def _cut_like_llama(tokenizer: Tokenizer) -> None:
    tokenizer.pre_tokenizer = Sequence(
        [Split(WORDS, behavior="isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = ByteLevelDecoder()


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--data", type=Path, required=True, help="folder with train.jsonl.gz")
    options = arguments.parse_args()
    rows = [*read_rows(options.data / "train.jsonl.gz"), *templates.rows()]
    # Every message follows "User: " in the prompt, so words are learnt with the space before them.
    save(learn(f"User: {message}" for row in rows for message in row.messages), POCKET)


if __name__ == "__main__":
    main()
