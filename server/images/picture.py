"""The parts of a file that a reader accepts: canonical files of its frames, and how they form the picture."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from server.domain.errors import ImageTooLarge, InvalidImage

MAX_SEGMENTS = 100_000
"""The most chunks, segments or blocks of one file. Each takes time to read and becomes a Python object."""

LEAST_DELAY_MS, SHORT_DELAY_MS = 10.0, 100.0
"""Every browser shows a frame with a delay of at most 10 ms for 100 ms."""

Buffer = bytes | memoryview


def not_an_image() -> InvalidImage:
    return InvalidImage("The image is not a complete JPEG, PNG, WebP or GIF file.")


def too_slow_to_decode() -> ImageTooLarge:
    return ImageTooLarge("The image takes too long to decode. Send a smaller or simpler one.")


class Disposal(Enum):
    """The fate of a frame's rectangle when its time is over."""

    KEEP = "keep"
    CLEAR = "clear"
    """It is transparent again."""
    RESTORE = "restore"
    """It is restored to its state before the frame."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One frame: a still picture in a rectangle of the canvas, whose edges it may overlap.

    `pieces`, joined, are a whole canonical file of the picture's format with these pixels and nothing else.
    `over`: transparent pixels leave the canvas below them visible. `opaque`: there are certainly none.
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
        """The time for which browsers show the frame."""
        return self.delay_ms if self.delay_ms > LEAST_DELAY_MS else SHORT_DELAY_MS

    @property
    def pixels(self) -> int:
        return self.width * self.height


@dataclass(frozen=True, slots=True)
class Picture:
    """All facts of an accepted file before any of it is decoded.

    `bytes_per_pixel` is the working memory for decoding (measured). `total` counts the pictures of the file; `layers`
    may be only the first of them. `poster` is the picture that viewers without animation show, if that is not the first
    layer. `profiles` are ICC profiles, and the first usable one decides the colours. `key` is the one transparent
    colour of a 16-bit PNG. `palette_size` is 0 without a palette.
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
    """Pixels times passes over them: an estimate of the time to decode."""

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def largest(self) -> int:
        """Pixels of the canvas or of a frame, whichever is larger."""
        return max(self.pixels, *(layer.pixels for layer in self.layers))
