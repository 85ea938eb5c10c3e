"""The sizes of pictures for the engine: their own, or smaller if the model could not use more pixels."""

import math

from server.domain.pictures import PictureSizes

UNSHRUNK_PIXELS = 1920 * 1200
"""Pictures of up to so many pixels are not resized here: the engine's resize takes a third of Pillow's time."""

MIN_SIDE = 4
"""Image processors mistake sides of 1 and 3 pixels for colour channels (CVE-2026-22773)."""


def shown_size(width: int, height: int, sizes: PictureSizes) -> tuple[int, int]:
    """The size of a picture for the engine: its own, or the model's if its own would take too much memory."""
    if width * height <= UNSHRUNK_PIXELS and max(width, height) <= sizes.longest_side:
        return width, height
    return sizes.shrunk(width, height)


def halved_size(width: int, height: int, sizes: PictureSizes) -> tuple[int, int]:
    """The size of each of two renderings of a picture, which together take the memory of the largest picture."""
    scale = math.sqrt(sizes.most_pixels / 2 / (width * height))
    return (width, height) if scale >= 1 else (max(1, int(width * scale)), max(1, int(height * scale)))


def draft_size(size: tuple[int, int]) -> tuple[int, int]:
    """The least size to which a JPEG may be decoded if it is resized to `size` afterwards."""
    return 2 * size[0], 2 * size[1]


def draft_reduction(width: int, height: int, sizes: PictureSizes) -> int:
    """The number by which Pillow's draft mode divides the sides of a JPEG."""
    least_width, least_height = draft_size(shown_size(width, height, sizes))
    possible = min(width // least_width, height // least_height)
    return next((reduction for reduction in (8, 4, 2) if possible >= reduction), 1)
