"""The tiles are the very ones of the official processor, for every size of picture."""

import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_utils import SizeDict
from transformers.models.llama4.image_processing_llama4 import (
    Llama4ImageProcessor,
    find_supported_resolutions,
    get_best_fit,
    get_max_res_without_distortion,
)

from server.backends.vllm.llama4.pixels import numbers_of, patches_of
from server.backends.vllm.llama4.tiles import LEVELS, all_levels, tiled
from server.families.llama_guard.pictures import TILE, fit

EDGES = [TILE * tiles + beside for tiles in (1, 2, 3, 4, 5, 16) for beside in (-1, 0, 1)]


@pytest.fixture(scope="module")
def process() -> Callable[[Image.Image], torch.Tensor]:
    processor = Llama4ImageProcessor()
    return lambda picture: processor(images=[picture], return_tensors="pt")["pixel_values"]


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, LEVELS, (height, width, 3), dtype=np.uint8))


def expected_fit(width: int, height: int, most: int) -> tuple[int, int, int, int]:
    resolutions = torch.tensor(find_supported_resolutions(most, SizeDict(height=TILE, width=TILE)))
    canvas = get_best_fit((height, width), resolutions)
    largest = tuple(min(max(side, TILE), limit) for side, limit in zip((height, width), canvas, strict=True))
    shown = get_max_res_without_distortion((height, width), largest)
    rows, columns = (int(side) // TILE for side in canvas)
    return columns, rows, max(1, int(shown[1])), max(1, int(shown[0]))


@pytest.mark.parametrize("most", [16, 4])
def test_pictures_fit_as_in_the_official_processor(most):
    choose = random.Random(4)
    sizes = list(itertools.product(EDGES, EDGES))
    sizes += [(choose.randint(1, limit), choose.randint(1, limit)) for limit in (400, 2000, 7000) for _ in range(300)]
    sizes += [(choose.randint(1, 40), choose.randint(1, 9000)) for _ in range(200)]
    assert [size for size in sizes if tuple(fit(*size, most)) != expected_fit(*size, most)] == []


def test_numbers_are_what_the_official_processor_makes_of_each_level(process):
    levels = torch.arange(LEVELS, dtype=torch.uint8)
    assert torch.equal(numbers_of(levels, torch.bfloat16), process(all_levels())[0, 0].flatten()[:LEVELS])


def test_patches_are_cut_as_the_network_cuts_them():
    tiles = torch.randint(LEVELS, (3, 3, 336, 336), dtype=torch.uint8)
    unfolded = torch.nn.Unfold(kernel_size=14, stride=14)(tiles.float()).permute(0, 2, 1)
    assert torch.equal(patches_of(tiles, 14).float(), unfolded)


@pytest.mark.parametrize(
    "size",
    [
        (336, 336),
        (100, 50),  # smaller than a tile: enlarged to it
        (4, 900),
        (500, 300),  # smaller than its canvas: padded
        (1024, 768),
        (1680, 945),
        (1920, 1080),  # larger than every canvas
        (5376, 330),
    ],
)
def test_tiles_are_those_of_the_official_processor(process, size):
    picture = noise(*size)
    expected, made = process(picture), tiled(np.array(picture))
    assert torch.equal(numbers_of(made, torch.bfloat16), expected)
    assert len(made) == fit(*size).tiles
