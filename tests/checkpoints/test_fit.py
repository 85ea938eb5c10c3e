"""The arithmetic of memory, held to the published figures."""

from dataclasses import replace
from pathlib import Path

import pytest

from server.checkpoints import fit
from server.checkpoints.facts import CheckpointFacts
from server.checkpoints.fit import GIB, check_fits, fit_of, headroom_bytes, kv_bytes_per_token, weights_bytes
from server.checkpoints.profile import Network, Profile, load_profile
from server.domain.errors import OperatorError


def guard(variant: str) -> Profile:
    return load_profile(f"llama-guard-4-12b:{variant}")


def network_of(profile: Profile) -> Network:
    assert profile.network is not None
    return profile.network


def facts_of(profile: Profile) -> CheckpointFacts:
    return CheckpointFacts(202_048, None, (), None, network_of(profile), None)


def test_the_network_has_twelve_billion_parameters() -> None:
    network = network_of(guard("80gb"))
    attention = 2 * 5120 * 5120 + 2 * 5120 * 8 * 128
    assert network.text_linear_parameters == 48 * (attention + 3 * 5120 * 8192)
    assert network.text_other_parameters == 2 * 202_048 * 5120 + (2 * 48 + 1) * 5120
    total = network.text_linear_parameters + network.text_other_parameters + network.vision_parameters
    assert total == pytest.approx(12.0e9, rel=0.01)


@pytest.mark.parametrize(
    ("variant", "weights_gib", "kv_kib", "kv_gib"),
    [("80gb", 22.4, 192, 30), ("48gb", 13.9, 96, 15), ("48gb-bf16", 22.4, 192, 16.5), ("text-only", 20.7, 192, 30)],
)
def test_sizes(variant: str, weights_gib: float, kv_kib: int, kv_gib: float) -> None:
    profile = guard(variant)
    network = network_of(profile)
    assert weights_bytes(profile, network) / GIB == pytest.approx(weights_gib, abs=0.05)
    assert kv_bytes_per_token(profile, network) == kv_kib * 1024
    assert fit_of(profile, network, 80 * GIB).kv_bytes == kv_gib * GIB


# What cards of these names report, in MiB.
H100, A100_80, A6000, L40S, RTX_4090, L4 = (size << 20 for size in (81_559, 81_920, 49_140, 46_068, 24_564, 23_034))


@pytest.mark.parametrize(
    ("variant", "cards"),
    [
        ("80gb", {H100, A100_80}),
        ("48gb", {H100, A100_80, A6000, L40S}),
        ("48gb-bf16", {H100, A100_80, A6000, L40S}),
        ("24gb", {H100, A100_80, A6000, L40S, RTX_4090, L4}),
        ("text-only", {H100, A100_80}),
    ],
)
def test_which_card_holds_which_variant(variant: str, cards: set[int]) -> None:
    profile = guard(variant)
    everything = (H100, A100_80, A6000, L40S, RTX_4090, L4)
    assert {card for card in everything if fit_of(profile, network_of(profile), card).fits} == cards


def test_largest_contexts_agree_with_the_published_ones() -> None:
    bf16 = guard("80gb")
    assert 90_000 < fit_of(bf16, network_of(bf16), L40S).largest_context < 110_000
    fp8_weights = guard("48gb")
    with_bf16_cache = replace(fp8_weights, engine={**fp8_weights.engine, "kv_cache_dtype": "auto"})
    network = network_of(fp8_weights)
    assert 26_000 < fit_of(with_bf16_cache, network, L4).largest_context < 28_000
    assert 33_000 < fit_of(with_bf16_cache, network, RTX_4090).largest_context < 36_000


def test_a_context_is_whole_blocks_and_never_negative() -> None:
    profile = guard("80gb")
    network = network_of(profile)
    assert fit_of(profile, network, 48 * GIB).largest_context % 16 == 0
    assert fit_of(profile, network, 8 * GIB).largest_context == 0
    assert not fit_of(profile, network, 8 * GIB).fits


def test_headroom_grows_with_the_rows_of_logits() -> None:
    profile = guard("80gb")
    more = replace(profile, engine={**profile.engine, "max_num_seqs": 1024})
    rows = 1024 - 256
    assert headroom_bytes(more) - headroom_bytes(profile) == 3 * rows * 202_048 * 4


def test_a_checkpoint_stored_quantised_counts_as_stored() -> None:
    profile = guard("80gb")
    network = replace(network_of(profile), text_linear_bytes=5 * GIB)
    others = 2 * (network.text_other_parameters + network.vision_parameters)
    assert weights_bytes(profile, network) == 5 * GIB + others


def test_a_kv_cache_of_a_given_size_takes_the_place_of_the_share() -> None:
    profile = replace(guard("80gb"), context_tokens=4096, engine={"dtype": "bfloat16", "kv_cache_memory_bytes": GIB})
    found = fit_of(profile, network_of(profile), 30 * GIB)
    assert found.largest_context == GIB // (192 * 1024) // 16 * 16
    assert found.fits
    assert not fit_of(profile, network_of(profile), 24 * GIB).fits


def test_float32_doubles_weights_and_cache() -> None:
    profile = guard("80gb")
    network = network_of(profile)
    wide = replace(profile, engine={"dtype": "float32"})
    assert weights_bytes(wide, network) == 2 * weights_bytes(profile, network)
    assert kv_bytes_per_token(wide, network) == 2 * kv_bytes_per_token(profile, network)


def test_check_fits_says_what_would_fit() -> None:
    profile = guard("80gb")
    check_fits(profile, facts_of(profile).network, H100)
    with pytest.raises(OperatorError, match=r"80gb does not fit: weights 22\.4 GiB, KV cache 30\.0 GiB") as raised:
        check_fits(profile, facts_of(profile).network, L40S)
    context = fit_of(profile, network_of(profile), L40S).largest_context
    assert f"set context_tokens to at most {context}." in str(raised.value)
    check_fits(replace(profile, context_tokens=context), facts_of(profile).network, L40S)


def test_check_fits_says_when_nothing_would() -> None:
    profile = guard("80gb")
    with pytest.raises(OperatorError, match="its weights alone leave no room"):
        check_fits(profile, facts_of(profile).network, L4)


NVIDIA_SMI = """#!/bin/sh
echo "NVIDIA L4, 23034"
echo "NVIDIA H100 80GB HBM3, 81559"
echo "NVIDIA GB10, [N/A]"
"""


def test_gpus_are_those_that_nvidia_smi_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fit.find_gpus() == ()
    command = tmp_path / "nvidia-smi"
    command.write_text(NVIDIA_SMI)
    command.chmod(0o755)
    assert fit.find_gpus() == (fit.Gpu("NVIDIA L4", L4), fit.Gpu("NVIDIA H100 80GB HBM3", H100))
    command.write_text("#!/bin/sh\nexit 9\n")
    assert fit.find_gpus() == ()
