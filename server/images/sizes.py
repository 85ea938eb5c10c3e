"""The sizes at which pictures leave: Llama 4's canvases, and when a picture is shrunk to one."""

import math

import numpy as np

TILE = 336
"""Side of one of the model's tiles, pixels."""

CANVASES = tuple((TILE * columns, TILE * rows) for columns in range(1, 17) for rows in range(1, 16 // columns + 1))
"""Width and height of everything that Llama 4's processor resizes into: at most 16 tiles in any rectangle."""

UNSHRUNK_PIXELS = 1920 * 1200
"""A picture of so many pixels leaves as it is: the engine's own resize to the canvas takes a third of Pillow's time."""

MIN_SIDE = 4
"""Sides of 1 and 3 pixels are what image processors mistake for colour channels (CVE-2026-22773)."""


def fit_canvas(width: int, height: int) -> tuple[int, int]:
    """The size that Llama 4's processor would resize to, or the same size where it does not shrink."""
    scale, columns, rows = max((min(columns / width, rows / height), columns, rows) for columns, rows in CANVASES)
    if scale >= 1:
        return width, height
    # In the processor's single precision: in double, the other side would sometimes be a pixel off.
    if columns / width < rows / height:
        return columns, max(1, int(np.float32(height) * (np.float32(columns) / np.float32(width))))
    return max(1, int(np.float32(width) * (np.float32(rows) / np.float32(height)))), rows


def shown_size(width: int, height: int) -> tuple[int, int]:
    """The size at which a picture leaves: its own, or that on the canvas where its own would take too much memory."""
    if width * height <= UNSHRUNK_PIXELS and max(width, height) <= max(max(CANVASES)):
        return width, height
    return fit_canvas(width, height)


def halved_size(width: int, height: int) -> tuple[int, int]:
    """The size at which two renderings of a picture leave: together they take the memory of the largest canvas."""
    scale = math.sqrt(16 * TILE * TILE / 2 / (width * height))
    return (width, height) if scale >= 1 else (max(1, int(width * scale)), max(1, int(height * scale)))


def draft_size(size: tuple[int, int]) -> tuple[int, int]:
    """The least size to which a JPEG may be decoded that is resized to `size` afterwards."""
    return 2 * size[0], 2 * size[1]


def draft_reduction(width: int, height: int) -> int:
    """By how much Pillow's draft mode divides the sides of a JPEG."""
    least_width, least_height = draft_size(shown_size(width, height))
    possible = min(width // least_width, height // least_height)
    return next((reduction for reduction in (8, 4, 2) if possible >= reduction), 1)
