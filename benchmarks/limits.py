"""The roofline of this machine's card beside each figure that an engine counted tokens for."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import roofline
from benchmarks.traffic import PICTURE_SIZES


def add(sections: Sequence[Mapping[str, Any]], folder: Path, precision: roofline.Precision) -> None:
    """Write `most_verdicts_per_s`, and the share of it that was reached, into the figures of each contender."""
    network = roofline.Network.from_config(json.loads((folder / "config.json").read_text()))
    device = roofline.measure()
    for section in sections:
        for figures in section["contenders"].values():
            if figures.get("computed_tokens"):
                most = 1 / least_seconds(network, device, precision, figures, section["shares"])
                figures["most_verdicts_per_s"] = most
                figures["share_of_most"] = figures["verdicts_per_s"] / most


def least_seconds(
    network: roofline.Network,
    device: roofline.Device,
    precision: roofline.Precision,
    figures: Mapping[str, float],
    shares: Mapping[str, float],
) -> float:
    """Least time for a verdict of the tokens that were counted, and for the tiles of its pictures on average."""
    prompt = figures["prompt_tokens"]
    load = roofline.Load.counted(network, prompt, prompt - figures["computed_tokens"], figures["forward_passes"])
    seconds = roofline.verdict_seconds(network, device, precision, load)
    images = sum(share * int(kind.removeprefix("image")) for kind, share in shares.items() if kind.startswith("image"))
    if not images or network.vision is None:
        return seconds
    tiles = sum(roofline.image_tiles(*size, network.vision.tile_pixels) for size in PICTURE_SIZES) / len(PICTURE_SIZES)
    return seconds + images * tiles * network.vision.flops_per_tile / device.bf16_flops
