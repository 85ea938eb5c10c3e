"""How large a picture a model can use."""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PictureSizes:
    """The sizes, in pixels, beyond which a model sees no more detail of a picture."""

    most_pixels: int
    """Pixels of the largest picture that it sees in full."""
    longest_side: int
    """The longest side of any picture as the model sees it."""
    shrunk: Callable[[int, int], tuple[int, int]]
    """Maps the width and height of a picture to those at which the model sees it, unchanged if it is not shrunk."""


def within(most_pixels: int, longest_side: int) -> PictureSizes:
    """The sizes of a model that shrinks a picture in proportion until it is within both limits."""

    def shrunk(width: int, height: int) -> tuple[int, int]:
        scale = min(1.0, longest_side / max(width, height), math.sqrt(most_pixels / (width * height)))
        return max(1, int(width * scale)), max(1, int(height * scale))

    return PictureSizes(most_pixels, longest_side, shrunk)
