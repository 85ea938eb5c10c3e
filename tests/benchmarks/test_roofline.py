"""The physical limit, held to the published arithmetic, to the shapes of the network and to torch's own count."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Llama4Config, Llama4ForConditionalGeneration
from transformers.image_utils import SizeDict
from transformers.models.llama4.image_processing_llama4 import find_supported_resolutions, get_best_fit

from benchmarks import roofline
from benchmarks.roofline import DEVICES, LLAMA_GUARD_4, Load, Network, Precision, most_verdicts_per_second
from server.checkpoints.profile import load_profile
from server.domain.conversation import Conversation, ImagePart, TextPart
from server.families.llama_guard.prompt import render
from tests import reference_model
from tests.golden.vocabulary import vocabulary

POCKET = Path(__file__).parents[2] / "model_config" / "pocket" / "config.json"
H100 = DEVICES["h100"]
assert LLAMA_GUARD_4.vision is not None
ENCODER = LLAMA_GUARD_4.vision


def full_config() -> dict[str, Any]:
    """config.json of the full-size network, as far as its shape goes."""
    config = reference_model.base_config(8192, layers=48, hidden=5120, heads=40, kv_heads=8)
    config["text_config"] |= {"intermediate_size": 8192, "intermediate_size_mlp": 8192}
    config["vision_config"] |= {
        "hidden_size": 1408,
        "num_hidden_layers": 34,
        "num_attention_heads": 16,
        "intermediate_size": 5632,
        "projector_input_dim": 4096,
        "projector_output_dim": 4096,
        "vision_output_dim": 4096,
    }
    return config


# --- The network -----------------------------------------------------------------------------------------


def test_a_configuration_of_its_shape_is_read_as_the_network():
    assert Network.from_config(full_config()) == LLAMA_GUARD_4


def test_its_parameters_are_those_that_the_profile_reckons_with():
    network = load_profile("llama-guard-4-12b").network
    assert network is not None
    assert LLAMA_GUARD_4.text_linear_parameters == network.text_linear_parameters
    assert LLAMA_GUARD_4.vision is not None
    assert LLAMA_GUARD_4.vision.parameters == pytest.approx(network.vision_parameters, rel=0.002)


def test_its_kv_cache_is_the_one_of_the_doctor():
    assert LLAMA_GUARD_4.kv_bytes("bf16") == 192 * 1024
    assert LLAMA_GUARD_4.kv_bytes("fp8") == 96 * 1024


def test_a_small_checkpoint_is_read_too():
    network = Network.from_config(json.loads(POCKET.read_text()))
    assert network.text_linear_parameters == 4 * (2 * 128 * 32 * (4 + 2) + 3 * 128 * 384)
    assert network.head_flops == 2 * 128 * 8256
    assert network.vision is not None
    assert network.vision.tokens_per_tile == 144
    assert most_verdicts_per_second(network, H100, "bf16", Load(100)) > 10_000


def test_a_checkpoint_without_images_has_no_vision_encoder():
    config = {key: value for key, value in full_config().items() if key != "vision_config"}
    network = Network.from_config(config)
    assert network == replace(LLAMA_GUARD_4, vision=None)
    with pytest.raises(ValueError, match="no vision encoder"):
        most_verdicts_per_second(network, H100, "bf16", Load(20, images=((336, 336),)))


def test_experts_are_refused():
    config = full_config()
    config["text_config"] |= {"num_local_experts": 16, "interleave_moe_layer_step": 1}
    with pytest.raises(ValueError, match="experts"):
        Network.from_config(config)


@pytest.fixture(scope="module")
def weightless() -> Llama4ForConditionalGeneration:
    """Two layers of each kind at full width, without memory."""
    config = full_config()
    config["text_config"] |= {"num_hidden_layers": 2, "no_rope_layers": [1, 1], "attention_chunk_size": 8192}
    config["vision_config"] |= {"num_hidden_layers": 2}
    with torch.device("meta"):
        return Llama4ForConditionalGeneration(Llama4Config.from_dict(config)).to(torch.bfloat16)


def counted(module: torch.nn.Module, *values: torch.Tensor) -> int:
    """FLOP by torch's own count, which leaves the causal half of attention in."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*values)
    flops: int = counter.get_total_flops()
    return flops


def test_torch_counts_the_same_for_text(weightless):
    tokens = 64
    network = replace(LLAMA_GUARD_4, layers=2)
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    expected = tokens * (network.token_flops + tokens * network.attention_flops + network.head_flops)
    # Rotary positions are a small matrix product, too.
    assert counted(weightless.language_model, ids) == pytest.approx(expected, rel=1e-4)


def test_torch_counts_the_same_for_a_tile(weightless):
    vision = replace(ENCODER, layers=2)
    tile = torch.zeros(1, 3, 336, 336, dtype=torch.bfloat16, device="meta")
    seen = torch.zeros(1, 144, 4096, dtype=torch.bfloat16, device="meta")
    found = counted(weightless.vision_model, tile) + counted(weightless.multi_modal_projector, seen)
    assert found == pytest.approx(vision.flops_per_tile, rel=1e-4)


# --- Images ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "tiles", "tokens"),
    [((336, 336), 1, 147), ((1024, 768), 13, 1887), ((1920, 1080), 16, 2322), ((5000, 5000), 17, 2467)],
)
def test_images_cost_the_published_tokens(size: tuple[int, int], tiles: int, tokens: int) -> None:
    assert roofline.image_tiles(*size) == tiles
    assert roofline.image_tokens(*size, ENCODER) == tokens


def test_tiles_are_those_of_the_image_processor():
    resolutions = torch.tensor(find_supported_resolutions(16, SizeDict(height=336, width=336)))
    choose = random.Random(4)
    sizes = [(choose.randint(4, 4000), choose.randint(4, 4000)) for _ in range(300)]
    for width, height in [*sizes, (336, 336), (337, 336), (16 * 336, 336), (10, 4000)]:
        canvas = get_best_fit((height, width), resolutions)
        assert roofline.tiles(width, height) == (canvas[1] // 336, canvas[0] // 336), (width, height)


# --- The limit -------------------------------------------------------------------------------------------

PUBLISHED = {20: (196, 344, 551, 967, 515), 100: (144, 253, 273, 480, 264), 500: (61, 108, 77, 135, 76)}
PUBLISHED[2000] = (19, 33, 20, 35, 20)


@pytest.mark.parametrize("tokens", PUBLISHED)
def test_the_published_table_is_reproduced(tokens):
    load, bare, unsafe = Load(tokens), Load(tokens, cached_tokens=0), Load(tokens, unsafe_share=1)
    asked: tuple[tuple[Load, Precision], ...] = (
        (bare, "bf16"),
        (bare, "fp8"),
        (load, "bf16"),
        (load, "fp8"),
        (unsafe, "bf16"),
    )
    found = [most_verdicts_per_second(LLAMA_GUARD_4, H100, precision, load) for load, precision in asked]
    assert found == pytest.approx(PUBLISHED[tokens], rel=0.02)


def test_the_published_constants_are_reproduced():
    assert LLAMA_GUARD_4.token_flops == pytest.approx(18.12e9, rel=1e-3)
    assert LLAMA_GUARD_4.head_flops == pytest.approx(2.07e9, rel=1e-3)
    published: tuple[tuple[Precision, float, float], ...] = (("bf16", 20.2, 6.7), ("fp8", 11.1, 3.7))
    for precision, gigabytes, milliseconds in published:
        assert LLAMA_GUARD_4.weight_bytes(precision) == pytest.approx(gigabytes * 1e9, rel=0.01)
        assert 1000 * roofline.least_pass_seconds(LLAMA_GUARD_4, H100, precision) == pytest.approx(
            milliseconds, rel=0.01
        )
    assert 1000 * roofline.step_seconds(LLAMA_GUARD_4, H100, "bf16", 2048) == pytest.approx(47, rel=0.015)


def test_filling_the_context_takes_twenty_seconds_and_more():
    """8.5 s were published: that is Llama 4's own attention, in chunks of 8,192 in three layers of four."""
    tokens, chunk = 163_840, 8192
    assert LLAMA_GUARD_4.prompt_flops(tokens) / H100.bf16_flops == pytest.approx(20.3, rel=0.01)
    pairs = Network.attended(tokens) / 4 + 3 / 4 * tokens // chunk * Network.attended(chunk)
    chunked = tokens * LLAMA_GUARD_4.token_flops + pairs * LLAMA_GUARD_4.attention_flops
    assert chunked / H100.bf16_flops == pytest.approx(8.5, rel=0.01)


def test_a_large_image_costs_the_published_arithmetic():
    """47 TFLOP, 17 a second: these leave out attention in the text decoder, a twentieth more."""
    flops = 13 * ENCODER.flops_per_tile + 1887 * LLAMA_GUARD_4.token_flops
    assert flops == pytest.approx(47e12, rel=0.01)
    assert H100.bf16_flops / flops == pytest.approx(17, rel=0.02)
    whole = roofline.work(LLAMA_GUARD_4, Load(20, ((1024, 768),)), "bf16").flops
    alone = whole - roofline.work(LLAMA_GUARD_4, Load(20), "bf16").flops
    assert alone == pytest.approx(1.05 * flops, rel=0.01)


def test_what_an_engine_counts_is_a_load():
    for load in (Load.warm(100), Load.warm(20, ((1024, 768), (336, 336)))):
        prompt = load.prompt_tokens(LLAMA_GUARD_4)
        counted = Load.counted(LLAMA_GUARD_4, prompt, load.cached_tokens, 1 + 0.25 * 5, load.images)
        asked = replace(load, unsafe_share=0.25)
        found, expected = (roofline.work(LLAMA_GUARD_4, each, "bf16") for each in (counted, asked))
        assert (found.flops, found.vision_flops) == pytest.approx((expected.flops, expected.vision_flops), rel=1e-4)


@pytest.mark.parametrize(
    ("images", "scaffold", "preamble"),
    [
        ((), roofline.SCAFFOLD_TOKENS, roofline.PREAMBLE_TOKENS),
        ((ImagePart("data:"),), roofline.IMAGE_SCAFFOLD_TOKENS, roofline.IMAGE_PREAMBLE_TOKENS),
    ],
)
def test_the_prompt_is_as_long_as_the_official_one(images, scaffold, preamble):
    taxonomy = load_profile("llama-guard-4-12b").taxonomy
    ids, others = (
        vocabulary("llama 4").official_ids(render(Conversation.from_user(*images, TextPart(word)), taxonomy).text)
        for word in ("hay", "bread")
    )
    # Without the word and the image's slot; with the blank line that the server adds.
    assert len(ids) - 1 - len(images) + 1 == pytest.approx(scaffold, abs=2)
    # The image's slot stands before the text, and no two images are alike.
    shared = next(index for index, (one, two) in enumerate(zip(ids, others, strict=True)) if one != two) - len(images)
    assert shared // 16 * 16 == preamble


def test_a_prompt_in_two_parts_costs_what_it_costs_in_one():
    whole = LLAMA_GUARD_4.prompt_flops(1000)
    assert LLAMA_GUARD_4.prompt_flops(400) + LLAMA_GUARD_4.prompt_flops(1000, cached=400) == pytest.approx(whole)


def test_a_small_step_is_bound_by_reading_the_weights():
    least = roofline.least_pass_seconds(LLAMA_GUARD_4, H100, "bf16")
    assert roofline.step_seconds(LLAMA_GUARD_4, H100, "bf16", 1) == least
    assert roofline.step_seconds(LLAMA_GUARD_4, H100, "bf16", 2048) > 6 * least
    alone = roofline.verdict_seconds(LLAMA_GUARD_4, H100, "bf16", Load(20), step_tokens=79)
    assert alone == pytest.approx(least, rel=0.01)


def test_a_step_with_an_image_reads_the_vision_encoder_too():
    load = Load.warm(20, ((336, 336),))
    computed = load.computed_tokens(LLAMA_GUARD_4)
    found = roofline.verdict_seconds(LLAMA_GUARD_4, H100, "bf16", load, step_tokens=computed)
    read = LLAMA_GUARD_4.weight_bytes("bf16") + 2 * ENCODER.parameters
    assert found == pytest.approx(read / H100.bandwidth, rel=0.01)


def test_without_fp8_arithmetic_fp8_weights_compute_in_bf16():
    a100 = DEVICES["a100"]
    both = [most_verdicts_per_second(LLAMA_GUARD_4, a100, precision, Load(100)) for precision in roofline.PRECISIONS]
    assert both[0] == both[1]


def test_every_card_says_where_its_peaks_come_from():
    assert {name for name, device in DEVICES.items() if device.source != roofline.VENDOR} == {"h100", "h200"}
    assert all("measured" in DEVICES[name].source for name in ("h100", "h200"))


# --- Running it ------------------------------------------------------------------------------------------


def test_measuring_gives_a_card():
    found = roofline.measure("cpu", size=64, copied_bytes=1 << 16, seconds=0.01)
    assert found.bf16_flops > 0
    assert found.bandwidth > 0
    assert found.fp8_flops is None
    assert most_verdicts_per_second(LLAMA_GUARD_4, found, "fp8", Load(100)) > 0


def test_it_prints(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["roofline", "--device", "h100"])
    roofline.main()
    printed = capsys.readouterr().out
    assert "| 100 | 144 / 253 | 273 / 480 | 264 / 462 |" in printed
    assert "1024 x 768" in printed
