"""Write the checkpoint folder that transformers and vLLM load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from model_config.pocket.training.network import PocketText, state_for_llama4, text_config
from model_config.pocket.training.pictures import TILE, Eye, vision_config
from model_config.pocket.training.tokenizer import VOCABULARY
from server.families.tokenizer import PromptTokenizer


def write(folder: Path, network: PocketText, eye: Eye, tokenizer: PromptTokenizer) -> None:
    """Weights in bfloat16 and all settings; each file appears at once and whole."""
    ids = {token: tokenizer.control_id(token) or 0 for token in _CONTROLS}
    ends = [ids["<|end_of_text|>"], ids["<|eom|>"], ids["<|eot|>"]]
    begin, pad = ids["<|begin_of_text|>"], ids["<|finetune_right_pad|>"]
    config = {
        "architectures": ["Llama4ForConditionalGeneration"],
        "model_type": "llama4",
        "dtype": "bfloat16",
        "boi_token_index": ids["<|image_start|>"],
        "eoi_token_index": ids["<|image_end|>"],
        "image_token_index": ids["<|patch|>"],
        "tie_word_embeddings": False,
        "text_config": text_config(VOCABULARY, ends, begin, pad),
        "vision_config": vision_config(),
    }
    # The sampling values are those of the real model's file, so that tests can show that they do not leak.
    generation = {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
        "bos_token_id": begin,
        "eos_token_id": ends,
        "pad_token_id": pad,
    }
    images = {
        "image_processor_type": "Llama4ImageProcessor",
        "processor_class": "Llama4Processor",
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "resample": 2,
        "size": {"height": TILE, "width": TILE},
        "max_patches": 4,
        "resize_to_max_canvas": False,
    }
    processor = {"processor_class": "Llama4Processor", "patch_size": 14, "pixel_shuffle_ratio": 0.5}
    for name, content in (
        ("config.json", config),
        ("generation_config.json", generation),
        ("preprocessor_config.json", images),
        ("processor_config.json", processor),
    ):
        _write_json(folder / name, content)
    state = {**state_for_llama4(network), **eye.state()}
    draft = folder / "model.safetensors.draft"
    save_file({name: part.to(torch.bfloat16).contiguous() for name, part in state.items()}, draft, {"format": "pt"})
    draft.chmod(0o644)
    draft.replace(folder / "model.safetensors")


_CONTROLS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|eom|>",
    "<|eot|>",
    "<|finetune_right_pad|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|patch|>",
)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(content, indent=2) + "\n")
    draft.replace(path)
