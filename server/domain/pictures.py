"""How large a picture a model can use."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PictureSizes:
    """The sizes, in pixels, beyond which a model sees no more of a picture."""

    most_pixels: int
    """Pixels of the largest picture that it looks at."""
    longest_side: int
    """The longest side that any picture has when it looks at it."""
    shrunk: Callable[[int, int], tuple[int, int]]
    """Width and height at which it looks at a picture of this width and height; the same where it shrinks nothing."""
