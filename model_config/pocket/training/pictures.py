"""The vision side of the first version: it carries pictures through the engine, it does not understand them.

The tower has Llama 4's shape and keeps its random weights, and its projection into the text network is zero: a picture
is so many blank places before the words.  With random projections instead, what a picture showed moved the verdict on
the words, and harmful words beside noise were called safe.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor
from transformers import Llama4VisionConfig
from transformers.models.llama4.modeling_llama4 import Llama4VisionModel

from model_config.pocket.training.network import WIDTH

TILE = 336
FEATURES_A_TILE = 144
TOWER_WIDTH = 64
TOWER_OUTPUT = 128


def vision_config() -> dict[str, Any]:
    return {
        "model_type": "llama4_vision_model",
        "hidden_size": TOWER_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_channels": 3,
        # The adapter reads four neighbouring patches at once, so this is also the width after the pixel shuffle.
        "intermediate_size": 4 * TOWER_WIDTH,
        "image_size": TILE,
        "patch_size": 14,
        "pixel_shuffle_ratio": 0.5,
        "projector_input_dim": TOWER_OUTPUT,
        "projector_output_dim": TOWER_OUTPUT,
        "vision_output_dim": TOWER_OUTPUT,
        "multi_modal_projector_bias": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "vision_feature_select_strategy": "default",
    }


class Eye:
    """The random tower and its blank projection into the text network's width."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.tower = Llama4VisionModel(Llama4VisionConfig(**vision_config())).eval()
        for weights in self.tower.parameters():
            if weights.dim() == 2:
                torch.nn.init.normal_(weights, std=weights.shape[1] ** -0.5)
        self.projection = torch.zeros(WIDTH, TOWER_OUTPUT)

    @torch.no_grad()
    def see(self, tiles: Tensor) -> Tensor:
        """Features of tiles with values from -1 to 1: (tiles, 144, width)."""
        seen: Tensor = self.tower(tiles).last_hidden_state
        return seen @ self.projection.T

    def state(self) -> dict[str, Tensor]:
        state = {f"vision_model.{name}": weights for name, weights in self.tower.state_dict().items()}
        return state | {"multi_modal_projector.linear_1.weight": self.projection}


def random_tiles(count: int, dice: random.Random) -> Tensor:
    """Pictures of nothing: flat, gradients, noise, stripes, boxes, and small ones padded with black."""
    noise = torch.Generator().manual_seed(dice.randrange(2**31))
    tiles = [_tile(dice, noise) for _ in range(count)]
    return torch.stack(tiles)


def _tile(dice: random.Random, noise: torch.Generator) -> Tensor:
    colour = torch.tensor([dice.uniform(-1, 1) for _ in range(3)]).view(3, 1, 1)
    other = torch.tensor([dice.uniform(-1, 1) for _ in range(3)]).view(3, 1, 1)
    ramp = torch.linspace(0, 1, TILE)
    kind = dice.choice(("flat", "gradient", "noise", "soft noise", "stripes", "box"))
    if kind == "flat":
        tile = colour.expand(3, TILE, TILE).clone()
    elif kind == "gradient":
        blend = dice.choice((ramp.view(1, -1, 1), ramp.view(1, 1, -1))).expand(1, TILE, TILE)
        tile = colour * (1 - blend) + other * blend
    elif kind == "noise":
        tile = torch.rand(3, TILE, TILE, generator=noise) * 2 - 1
    elif kind == "soft noise":
        grains = torch.rand(1, 3, dice.choice((4, 8, 24)), dice.choice((4, 8, 24)), generator=noise) * 2 - 1
        tile = torch.nn.functional.interpolate(grains, size=(TILE, TILE), mode="bilinear")[0]
    elif kind == "stripes":
        blend = (ramp * dice.randint(3, 40)).remainder(1).round().view(1, 1, -1).expand(1, TILE, TILE)
        tile = colour * (1 - blend) + other * blend
    else:
        tile = colour.expand(3, TILE, TILE).clone()
        top, left = dice.randrange(TILE - 40), dice.randrange(TILE - 40)
        tile[:, top : top + dice.randint(20, 200), left : left + dice.randint(20, 200)] = other
    if dice.random() < 0.3:
        tile[:, dice.randint(20, TILE) :, :] = -1.0
        tile[:, :, dice.randint(20, TILE) :] = -1.0
    return tile
