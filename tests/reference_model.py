"""A checkpoint with the architecture of Llama Guard 4 and its whole vocabulary, but small and with random weights.

The tests compare engines on it: every part of the real network is there (dense Llama 4 layers with RoPE everywhere,
no attention chunks, llama3 rope scaling, untied head, vision tower, tiles), in float32 and with weights large enough
that a mistake in any of them shows in the log-probabilities.

Three things are not random, so that a test can say something about an answer:

* the grammar: after `<|header_end|>` comes a blank line, then `safe` or `unsafe`, after `unsafe` a line with one
  category, then `<|eot|>`. Which verdict and which category is up to the random weights, with a lean to `safe`;
* one head of the first layer listens for ALARM_WORDS at any distance: one of them anywhere in the prompt makes the
  answer `unsafe`. A prompt that was cut or reordered on its way to the model cannot hide from it;
* the residual channels that carry the above (CHANNELS) are written by nothing else.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import llama_models.llama4.tokenizer as llama4
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing
from transformers import Llama4Config, Llama4ForConditionalGeneration
from transformers.convert_slow_tokenizer import TikTokenConverter

CHAT_TEMPLATE = Path(__file__).parents[1] / "model_config" / "llama-guard-4-12b" / "chat_template.jinja"

VOCABULARY = 202_048
BEGIN_OF_TEXT, PAD = 200_000, 200_018
ENDS = (200_001, 200_007, 200_008)
"""End of text, of a message, of a turn."""

ALARM_WORDS = (" needle", " lantern", " marble")
"""Words of one token each that the first head hears at any distance. The moderation prompt itself has none of them."""

ORDINARY_WORDS = (
    *("hay", "grass", "bread", "water", "river", "stone", "house", "garden"),
    *("window", "table", "paper", "music", "summer", "winter", "morning", "evening"),
    *("green", "yellow", "simple", "quiet", "letter", "number", "animal", "horse"),
    *("bridge", "market", "kitchen", "doctor", "teacher", "travel", "story", "weather"),
)
"""Words of one token each, with a space before them, of which the model takes no special notice."""

NUMBERS = tuple(str(number) for number in range(1, 15))
ANSWER_WORDS = ("safe", "unsafe", *NUMBERS)
"""The tokens whose probabilities make a verdict."""

GRAMMAR: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("<|header_end|>",), ("\n\n",)),
    (("\n\n",), ("safe", "unsafe")),
    (("unsafe",), ("\n",)),
    (("\n",), ("S",)),
    (("S",), NUMBERS),
    (("safe", *NUMBERS), ("<|eot|>",)),
)
"""What the answer is made of: after any of the first tokens comes one of the second."""

# The residual channels that are written on purpose.
ALWAYS, ALARM_WORD, ALARM, FIRST_RULE = 0, 1, 2, 3
CHANNELS = FIRST_RULE + len(GRAMMAR)

GAIN = 1.5
"""How much larger a matrix is than one that keeps the variance: differences must show."""

LOUD = {"o_proj.weight": 3.0, "lm_head.weight": 2.0}
"""Matrices with a gain of their own. Random attention averages over the prompt; what is left of it must be heard."""


def build_reference_model(
    folder: Path,
    *,
    max_position_embeddings: int = 8192,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    seed: int = 4,
) -> Path:
    """Write the checkpoint with tokenizer and processor into `folder`, as a download from the hub would lie there."""
    tokenizer = llama4_tokenizer()
    config = base_config(max_position_embeddings, layers, hidden, heads, kv_heads)
    write_all_but_weights(folder, config, tokenizer)
    weights = _random_weights(Llama4Config.from_pretrained(folder), seed)
    _teach(weights, tokenizer, config["text_config"])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_all_but_weights(folder: Path, config: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Configuration, tokenizer, processor and template."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", GENERATION_CONFIG)
    _write_json(folder / "preprocessor_config.json", PREPROCESSOR_CONFIG)
    _write_json(folder / "processor_config.json", PROCESSOR_CONFIG)
    _write_json(folder / "tokenizer_config.json", TOKENIZER_CONFIG)
    _write_json(folder / "special_tokens_map.json", SPECIAL_TOKENS)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    if CHAT_TEMPLATE.exists():
        shutil.copyfile(CHAT_TEMPLATE, folder / "chat_template.jinja")


def llama4_tokenizer() -> Tokenizer:
    """Meta's own tokenizer of Llama 4 in the form of the tokenizers library, with equal ids."""
    special = llama4.BASIC_SPECIAL_TOKENS + llama4.LLAMA4_SPECIAL_TOKENS
    reserved = llama4.Tokenizer.num_reserved_special_tokens - len(special)
    tokenizer: Tokenizer = TikTokenConverter(
        vocab_file=str(Path(llama4.__file__).with_name("tokenizer.model")),
        pattern=llama4.Tokenizer.O200K_PATTERN,
        extra_special_tokens=special + [f"<|reserved_special_token_{number}|>" for number in range(reserved)],
    ).converted()
    begin = "<|begin_of_text|>"
    with_begin = TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, BEGIN_OF_TEXT)]
    )
    tokenizer.post_processor = Sequence([ByteLevel(trim_offsets=False), with_begin])
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise ValueError(f"the vocabulary has {tokenizer.get_vocab_size()} entries instead of {VOCABULARY}")
    return tokenizer


def base_config(max_position_embeddings: int, layers: int, hidden: int, heads: int, kv_heads: int) -> dict[str, Any]:
    """config.json in the words of the checkpoint on the hub (`rope_scaling`, not transformers' newer names)."""
    vision_heads, vision_head_width, projected = 2, 88, 128
    vision_hidden = vision_heads * vision_head_width
    return {
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": "llama4",
        "torch_dtype": "float32",
        "transformers_version": "4.51.0",
        "boi_token_index": 200_080,
        "eoi_token_index": 200_081,
        "image_token_index": 200_092,
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "llama4_text",
            "torch_dtype": "float32",
            "vocab_size": VOCABULARY,
            "bos_token_id": BEGIN_OF_TEXT,
            "eos_token_id": list(ENDS),
            "pad_token_id": PAD,
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": 128,
            "intermediate_size": 2 * hidden,
            "intermediate_size_mlp": 2 * hidden,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "use_qk_norm": True,
            "attention_bias": False,
            "tie_word_embeddings": False,
            "max_position_embeddings": max_position_embeddings,
            "rope_theta": 500_000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            "no_rope_layers": [1] * layers,
            "attention_chunk_size": None,
            "attn_temperature_tuning": False,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "interleave_moe_layer_step": 0,
            "moe_layers": [],
        },
        "vision_config": {
            "model_type": "llama4_vision_model",
            "torch_dtype": "float32",
            "hidden_size": vision_hidden,
            "num_hidden_layers": 2,
            "num_attention_heads": vision_heads,
            # The adapter reads four patches side by side, so this is no free choice.
            "intermediate_size": 4 * vision_hidden,
            "image_size": 336,
            "patch_size": 14,
            "num_channels": 3,
            "pixel_shuffle_ratio": 0.5,
            "projector_input_dim": projected,
            "projector_output_dim": projected,
            "vision_output_dim": projected,
            "hidden_act": "gelu",
            "norm_eps": 1e-5,
            "rope_theta": 10_000,
        },
    }


def _random_weights(config: Llama4Config, seed: int) -> dict[str, torch.Tensor]:
    """Random values for every weight that the architecture has; its own class says which those are."""
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in Llama4ForConditionalGeneration(config).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)

    def value(name: str, shape: torch.Size) -> torch.Tensor:
        noise = torch.randn(shape, generator=generator)
        if name.endswith("embed_tokens.weight"):
            return noise
        if "norm" in name:
            return 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
        if len(shape) == 1:
            return 0.1 * noise
        gain = next((gain for ending, gain in LOUD.items() if name.endswith(ending)), GAIN)
        deviation: float = gain / shape[-1] ** 0.5
        return noise * deviation

    return {name: value(name, shape) for name, shape in shapes.items()}


def _teach(weights: dict[str, torch.Tensor], tokenizer: Tokenizer, text_config: dict[str, Any]) -> None:
    """Write the parts that are not random."""
    layer = "language_model.model.layers.{}."
    width = text_config["head_dim"]
    embeddings = weights["language_model.model.embed_tokens.weight"]
    head = weights["language_model.lm_head.weight"]

    # Random weights have their say in the verdict, but the lean to `safe` must hold for any shape and seed.
    head[_ids(tokenizer, ["safe", "unsafe"])] *= 0.5
    teach_grammar(embeddings, head, tokenizer)
    # Channels carry from the embeddings to the head only what is put there: no layer and no image writes into them.
    weights["multi_modal_projector.linear_1.weight"][:CHANNELS] = 0
    for index in range(text_config["num_hidden_layers"]):
        weights[layer.format(index) + "self_attn.o_proj.weight"][:CHANNELS] = 0
        weights[layer.format(index) + "feed_forward.down_proj.weight"][:CHANNELS] = 0

    # The listening head asks for one direction only, in the pair of dimensions that RoPE turns slowest (a twentieth
    # of a radian over 163,840 tokens). Keys have nothing there, unless they stand for an alarm word.
    slowest = width - 2
    attention = layer.format(0) + "self_attn."
    queries, keys, values = (weights[f"{attention}{name}_proj.weight"] for name in "qkv")
    queries[:width] = 0
    queries[slowest, ALWAYS] = 8
    keys[slowest : slowest + 2] = 0
    keys[slowest, ALARM_WORD] = 100
    values[0] = 0
    values[0, ALARM_WORD] = 1
    output = weights[f"{attention}o_proj.weight"]
    output[:, :width] *= 0.2  # what else it hears must not drown the grammar
    output[ALARM, 0] = 1.6
    embeddings[_ids(tokenizer, ALARM_WORDS), ALARM_WORD] = 8
    head[_ids(tokenizer, ["unsafe"]), ALARM] = 6


def teach_grammar(embeddings: torch.Tensor, head: torch.Tensor, tokenizer: Tokenizer) -> None:
    """Write the form of an answer, and the lean to `safe`, into embeddings and head, both [vocabulary, hidden]."""
    embeddings[:, :CHANNELS] = 0
    head[:, :CHANNELS] = 0
    embeddings[:, ALWAYS] = 1
    head[_ids(tokenizer, ["safe"]), ALWAYS] = 4
    # An alarm raises `unsafe` everywhere behind it, and must not be repeated where the grammar wants something else.
    head[_ids(tokenizer, ["unsafe"]), FIRST_RULE:CHANNELS] = -6
    for channel, (before, after) in enumerate(GRAMMAR, start=FIRST_RULE):
        embeddings[_ids(tokenizer, before), channel] = 16
        head[_ids(tokenizer, after), channel] = 5


def _ids(tokenizer: Tokenizer, words: Iterable[str]) -> list[int]:
    """The ids of words that are one token each."""
    ids = [tokenizer.encode(word, add_special_tokens=False).ids for word in words]
    if any(len(tokens) != 1 for tokens in ids):
        raise ValueError(f"not one token each: {words}")
    return [token for (token,) in ids]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


GENERATION_CONFIG = {
    "bos_token_id": BEGIN_OF_TEXT,
    "eos_token_id": list(ENDS),
    "pad_token_id": PAD,
    # What the real checkpoint carries, and what a moderation server must not use.
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.9,
}
PREPROCESSOR_CONFIG = {
    "image_processor_type": "Llama4ImageProcessorFast",
    "processor_class": "Llama4Processor",
    "size": {"height": 336, "width": 336},
    "max_patches": 16,
    "resize_to_max_canvas": False,
    "do_convert_rgb": True,
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "resample": 2,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
PROCESSOR_CONFIG = {
    "processor_class": "Llama4Processor",
    "patch_size": 14,
    "pixel_shuffle_ratio": 0.5,
    "fake_image_token": "<|image|>",
    "image_token": "<|image|>",
    "start_of_image_token": "<|image_start|>",
    "end_of_image_token": "<|image_end|>",
    "patch_token": "<|patch|>",
    "tile_x_separator_token": "<|tile_x_separator|>",
    "tile_y_separator_token": "<|tile_y_separator|>",
}
SPECIAL_TOKENS = {
    "bos_token": "<|begin_of_text|>",
    "eos_token": "<|eot|>",
    "pad_token": "<|finetune_right_pad|>",
}
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "processor_class": "Llama4Processor",
    "model_input_names": ["input_ids", "attention_mask"],
    "clean_up_tokenization_spaces": False,
    **SPECIAL_TOKENS,
}
