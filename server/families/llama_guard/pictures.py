"""How Llama Guard 4 looks at pictures: as Llama 4 does, on a canvas of at most 16 square tiles.

This is the arithmetic of sizes alone, for whoever decodes pictures and for whoever cuts them into tiles.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np

from server.domain.pictures import PictureSizes

TILE = 336
"""Side of a tile, pixels."""

MOST_TILES = 16
"""Of one canvas."""

CANVASES = tuple(
    (TILE * columns, TILE * rows)
    for columns in range(1, MOST_TILES + 1)
    for rows in range(1, MOST_TILES // columns + 1)
)
"""Width and height of every canvas."""


def shrunk(width: int, height: int) -> tuple[int, int]:
    """The size that Llama 4's processor would resize to, or the same size where it does not shrink."""
    scale, columns, rows = max((min(columns / width, rows / height), columns, rows) for columns, rows in CANVASES)
    if scale >= 1:
        return width, height
    # In the processor's single precision: in double, the other side would sometimes be a pixel off.
    if columns / width < rows / height:
        return columns, max(1, int(np.float32(height) * (np.float32(columns) / np.float32(width))))
    return max(1, int(np.float32(width) * (np.float32(rows) / np.float32(height)))), rows


SIZES = PictureSizes(most_pixels=MOST_TILES * TILE * TILE, longest_side=max(max(CANVASES)), shrunk=shrunk)


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


def fit(width: int, height: int, most: int = MOST_TILES) -> Fit:
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


@cache
def _canvases(most: int) -> tuple[list[tuple[int, int]], np.ndarray, np.ndarray]:
    """Those of at most so many tiles, and their widths and heights."""
    canvases = [canvas for canvas in CANVASES if math.prod(canvas) <= most * TILE * TILE]
    widths, heights = np.array(canvases, dtype=np.float32).T
    return canvases, widths, heights


def _scale(side: int, canvas: int) -> tuple[int, np.float32 | float]:
    """The longest that a side may become, and by what it is multiplied for that."""
    wanted = max(side, TILE)
    return (canvas, np.float32(canvas) / np.float32(side)) if canvas < wanted else (wanted, wanted / side)
