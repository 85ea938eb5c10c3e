"""What the reader of a format accepts of a file: canonical files of its frames, and how they make the picture."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from server.domain.errors import ImageTooLarge, InvalidImage

MAX_SEGMENTS = 100_000
"""Chunks, segments or blocks of one file: reading them takes time, and Python objects are made of them."""

LEAST_DELAY_MS, SHORT_DELAY_MS = 10.0, 100.0
"""A frame that asks for at most 10 ms is shown for 100 ms by every browser."""

Buffer = bytes | memoryview


def not_an_image() -> InvalidImage:
    return InvalidImage("The image is not a complete JPEG, PNG, WebP or GIF file.")


def too_slow_to_decode() -> ImageTooLarge:
    return ImageTooLarge("The image takes too long to decode.")


class Disposal(Enum):
    """What becomes of a frame's rectangle when its time is over."""

    KEEP = "keep"
    CLEAR = "clear"
    """It is transparent again."""
    RESTORE = "restore"
    """It is again what it was before the frame."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One frame: a still picture in a rectangle of the canvas, whose edges it may overlap.

    `pieces`, joined, are a whole canonical file of the picture's format with these pixels and nothing else.
    `over` says that transparent pixels leave visible what was there, `opaque` that there surely are none.
    """

    left: int
    top: int
    width: int
    height: int
    pieces: tuple[Buffer, ...]
    delay_ms: float = 0.0
    disposal: Disposal = Disposal.KEEP
    over: bool = True
    opaque: bool = False

    @property
    def shown_ms(self) -> float:
        """How long browsers show the frame."""
        return self.delay_ms if self.delay_ms > LEAST_DELAY_MS else SHORT_DELAY_MS

    @property
    def pixels(self) -> int:
        return self.width * self.height


@dataclass(frozen=True, slots=True)
class Picture:
    """All that is known of an accepted file before anything of it is decoded.

    `bytes_per_pixel` is the working memory that decoding needs (measured). `total` counts the pictures of the file,
    of which `layers` may be the first ones only. `poster` is what viewers show that know no animations, where that
    is not the first layer. `profiles` are ICC profiles: the first one that can be used decides about the colours.
    `key` is the one transparent colour of a PNG of 16 bits a sample, `palette_size` is 0 without a palette.
    """

    format: str
    width: int
    height: int
    bytes_per_pixel: float
    layers: tuple[Layer, ...]
    total: int
    loops: bool = True
    poster: Layer | None = None
    profiles: tuple[Callable[[], bytes], ...] = ()
    orientation: int = 1
    bit_depth: int = 8
    key: tuple[int, ...] | None = None
    palette_size: int = 0
    work: int = 0
    """Pixels times passes over them, as an estimate of the time that decoding takes."""

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def largest(self) -> int:
        """Pixels of the canvas or of a frame, whichever is larger."""
        return max(self.pixels, *(layer.pixels for layer in self.layers))
