"""From a picture to the tiles that Llama 4's vision tower takes: the very ones of the official processor, sooner.

The official processor spends most of its time on arithmetic over whole pictures whose result can only be one of 256
values, and on spelling out and encoding a text of thousands of placeholders. Here tiles stay bytes, and are made
numbers last (process.py): where the vision tower runs on CPUs, before they are sent on GPUs.
"""

import math
import warnings
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2.functional import InterpolationMode, resize  # type: ignore[import-untyped]

from server.images import CANVASES, TILE

# Pillow's pixels are read-only, and nothing writes to them here: a writable copy of them costs as much as tiling.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

LEVELS = 256
"""Values that a sample of a picture can have."""


class Fit(NamedTuple):
    """The canvas of a picture, in tiles, and the size in pixels that the picture has on it."""

    columns: int
    rows: int
    width: int
    height: int

    @property
    def tiles(self) -> int:
        """Tiles of the canvas, and one with an overview of the picture where they are more than one."""
        canvas = self.columns * self.rows
        return canvas if canvas == 1 else canvas + 1


@cache
def _canvases(most: int) -> tuple[list[tuple[int, int]], np.ndarray, np.ndarray]:
    """Those of at most so many tiles, and their widths and heights."""
    canvases = [canvas for canvas in CANVASES if math.prod(canvas) <= most * TILE * TILE]
    widths, heights = np.array(canvases, dtype=np.float32).T
    return canvases, widths, heights


def fit(width: int, height: int, most: int = 16) -> Fit:
    """How Llama 4 shows a picture of this size: as large as it is, or smaller where no canvas of `most` tiles holds it.

    Computed in single precision where the processor does, or some sides would be a pixel off.
    """
    canvases, widths, heights = _canvases(most)
    scales = np.minimum(widths / np.float32(width), heights / np.float32(height))
    enough = scales[scales >= 1]
    scale = enough.min() if enough.size else scales.max()
    canvas_width, canvas_height = min(
        (canvas for canvas, its_scale in zip(canvases, scales, strict=True) if its_scale == scale), key=math.prod
    )
    # A picture is never enlarged past one tile.
    largest_width, scale_x = _scale(width, canvas_width)
    largest_height, scale_y = _scale(height, canvas_height)
    if scale_x < scale_y:
        width, height = largest_width, min(math.floor(height * scale_x), largest_height)
    else:
        width, height = min(math.floor(width * scale_y), largest_width), largest_height
    return Fit(canvas_width // TILE, canvas_height // TILE, max(1, width), max(1, height))


def _scale(side: int, canvas: int) -> tuple[int, np.float32 | float]:
    """The longest that a side may become, and by what it is multiplied for that."""
    wanted = max(side, TILE)
    return (canvas, np.float32(canvas) / np.float32(side)) if canvas < wanted else (wanted, wanted / side)


def tiled(pixels: np.ndarray, most: int = 16) -> torch.Tensor:
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
