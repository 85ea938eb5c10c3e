"""Reading checkpoints: tiny ones that are made here."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from server.checkpoints.facts import CheckpointFacts, read_facts
from server.checkpoints.profile import Network
from server.domain.errors import OperatorError

BYTES = {"BF16": 2, "F32": 4, "F8_E4M3": 1}

CONFIG: dict[str, Any] = {
    "architectures": ["Llama4ForConditionalGeneration"],
    "torch_dtype": "bfloat16",
    "text_config": {
        "vocab_size": 100,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 131072,
        "attention_chunk_size": None,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
        "eos_token_id": 7,
    },
    "vision_config": {"image_size": 336, "patch_size": 14, "pixel_shuffle_ratio": 0.5},
}

TENSORS = {
    "language_model.model.embed_tokens.weight": ("BF16", [100, 32]),
    "language_model.lm_head.weight": ("BF16", [100, 32]),
    "language_model.model.norm.weight": ("BF16", [32]),
    "language_model.model.layers.0.input_layernorm.weight": ("BF16", [32]),
    "language_model.model.layers.0.self_attn.q_proj.weight": ("BF16", [32, 32]),
    "language_model.model.layers.1.feed_forward.up_proj.weight": ("BF16", [64, 32]),
    "vision_model.model.layers.0.self_attn.q_proj.weight": ("BF16", [16, 16]),
    "multi_modal_projector.linear_1.weight": ("BF16", [32, 16]),
}


def write_weights(file: Path, tensors: dict[str, tuple[str, list[int]]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        size = BYTES[dtype]
        for side in shape:
            size *= side
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(end))


def write_checkpoint(folder: Path, config: dict[str, Any] = CONFIG, tensors: Any = TENSORS) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_weights(folder / "model.safetensors", tensors)
    return folder


def with_text(**changes: Any) -> dict[str, Any]:
    return {**CONFIG, "text_config": {**CONFIG["text_config"], **changes}}


def test_facts_of_a_small_llama_4(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    (folder / "generation_config.json").write_text('{"eos_token_id": [200001, 200008]}')
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert read_facts(folder) == CheckpointFacts(
        vocabulary_size=100,
        context_tokens=131_072,
        eos_token_ids=(200_001, 200_008),
        tokens_per_tile=144,
        network=Network(
            layers=2,
            kv_heads=2,
            head_dim=8,
            text_linear_parameters=32 * 32 + 64 * 32,
            text_other_parameters=2 * 100 * 32 + 2 * 32,
            vision_parameters=16 * 16 + 32 * 16,
        ),
        chat_template="{{ messages }}",
    )


@pytest.mark.parametrize(
    ("changes", "chunk"),
    [
        ({}, None),
        ({"attention_chunk_size": 4096}, 4096),
        ({"attention_chunk_size": 0}, None),
        ({"model_type": "llama4_text"}, None),
    ],
)
def test_where_attention_is_cut(tmp_path: Path, changes: dict[str, Any], chunk: int | None) -> None:
    assert read_facts(write_checkpoint(tmp_path, with_text(**changes))).attention_chunk == chunk


@pytest.mark.parametrize(("model_type", "chunk"), [("llama4_text", 8192), ("llama", None)])
def test_where_attention_is_cut_if_the_checkpoint_does_not_say(
    tmp_path: Path, model_type: str, chunk: int | None
) -> None:
    config = with_text(model_type=model_type)
    del config["text_config"]["attention_chunk_size"]
    assert read_facts(write_checkpoint(tmp_path, config)).attention_chunk == chunk


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({}, 131_072),
        ({"rope_scaling": None}, 131_072),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, 262_144),
        ({"rope_scaling": None, "rope_parameters": {"rope_type": "llama3", "factor": 16.0}}, 131_072),
        ({"rope_scaling": None, "rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}, 524_288),
        ({"max_position_embeddings": None}, None),
    ],
)
def test_rope_scaling_counts_once(tmp_path: Path, changes: dict[str, Any], allowed: int | None) -> None:
    assert read_facts(write_checkpoint(tmp_path, with_text(**changes))).context_tokens == allowed


def test_a_text_model_has_no_images_and_a_flat_configuration(tmp_path: Path) -> None:
    facts = read_facts(write_checkpoint(tmp_path, CONFIG["text_config"]))
    assert facts.tokens_per_tile is None
    assert (facts.vocabulary_size, facts.eos_token_ids, facts.chat_template) == (100, (7,), None)


def test_absent_sizes_follow_from_others(tmp_path: Path) -> None:
    network = read_facts(write_checkpoint(tmp_path, with_text(head_dim=None, num_key_value_heads=None))).network
    assert (network.kv_heads, network.head_dim) == (4, 8)


def test_quantised_weights_count_as_stored(tmp_path: Path) -> None:
    config = {**CONFIG, "quantization_config": {"quant_method": "compressed-tensors"}}
    q_proj = "language_model.model.layers.0.self_attn.q_proj.weight"
    facts = read_facts(write_checkpoint(tmp_path, config, {**TENSORS, q_proj: ("F8_E4M3", [32, 32])}))
    assert facts.network.text_linear_bytes == 32 * 32 + 2 * 64 * 32


def test_several_files_and_older_templates(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    names = sorted(TENSORS)
    (folder / "model.safetensors").unlink()
    for number, part in enumerate((names[:3], names[3:])):
        write_weights(folder / f"part-{number}.safetensors", {name: TENSORS[name] for name in part})
    index = {name: f"part-{int(name not in names[:3])}.safetensors" for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    (folder / "tokenizer_config.json").write_text('{"chat_template": "old"}')
    facts = read_facts(folder)
    assert facts.network == read_facts(write_checkpoint(tmp_path / "whole")).network
    assert facts.chat_template == "old"
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(OperatorError, match=r"weights are missing: part-1\.safetensors"):
        read_facts(folder)


def test_incomplete_checkpoints_are_told(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match=r"config\.json: cannot be read"):
        read_facts(tmp_path)
    folder = write_checkpoint(tmp_path)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for cut, told in ((len(whole) - 1, "cut short"), (20, "cut short"), (3, "cut short")):
        weights.write_bytes(whole[:cut])
        with pytest.raises(OperatorError, match=told):
            read_facts(folder)
    weights.write_bytes(struct.pack("<Q", 4) + b"{not")
    with pytest.raises(OperatorError, match="safetensors header cannot be read"):
        read_facts(folder)
    weights.unlink()
    with pytest.raises(OperatorError, match=r"no \*\.safetensors file"):
        read_facts(folder)


@pytest.mark.parametrize("missing", ["vocab_size", "num_hidden_layers", "num_attention_heads"])
def test_a_configuration_without_sizes_is_told(tmp_path: Path, missing: str) -> None:
    with pytest.raises(OperatorError, match="a size of the network is missing or wrong"):
        read_facts(write_checkpoint(tmp_path, with_text(**{missing: None})))
