"""From a picture to the tiles that Llama 4's vision tower takes: the very ones of the official processor, sooner.

The official processor spends most of its time on arithmetic over whole pictures whose result can only be one of 256
values, and on spelling out and encoding a text of thousands of placeholders. Here tiles stay bytes, and are made
numbers last (pixels.py): where the vision tower runs on CPUs, before they are sent on GPUs.
"""

import warnings

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2.functional import InterpolationMode, resize  # type: ignore[import-untyped]

from server.families.llama_guard.pictures import MOST_TILES, TILE, fit

# Pillow's pixels are read-only, and nothing writes to them here: a writable copy of them costs as much as tiling.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

LEVELS = 256
"""Values that a sample of a picture can have."""


def tiled(pixels: np.ndarray, most: int = MOST_TILES) -> torch.Tensor:
    """The tiles of a picture row by row, and its overview last: [tiles, 3, 336, 336] of uint8.

    `pixels` are RGB, [height, width, 3] of uint8; `most` is as in `fit`.
    """
    height, width, _ = pixels.shape
    place = fit(width, height, most)
    whole = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    scaled = _resized(whole, place.height, place.width)[0]
    tiles = torch.zeros(place.tiles, 3, TILE, TILE, dtype=torch.uint8)
    # Where the picture does not reach, a canvas is black.
    for row in range(-(-place.height // TILE)):
        for column in range(-(-place.width // TILE)):
            piece = scaled[:, row * TILE : (row + 1) * TILE, column * TILE : (column + 1) * TILE]
            tiles[row * place.columns + column, :, : piece.shape[1], : piece.shape[2]] = piece
    if place.tiles > 1:
        tiles[-1] = _resized(whole, TILE, TILE)[0]
    return tiles


def _resized(picture: torch.Tensor, height: int, width: int) -> torch.Tensor:
    if picture.shape[-2:] == (height, width):
        return picture
    result: torch.Tensor = resize(picture, [height, width], InterpolationMode.BILINEAR, antialias=True)
    return result


def all_levels() -> Image.Image:
    """A picture of one tile with every level in it, from its first sample on."""
    samples = np.arange(TILE * TILE, dtype=np.uint32) % LEVELS
    return Image.fromarray(samples.astype(np.uint8).reshape(TILE, TILE)).convert("RGB")
