"""Decodes the frames of an accepted file, each as a separate still picture, and composes them as browsers do."""

import io
import time
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageFile

from server.domain.errors import DeadlineExceeded
from server.images.colours import Colours
from server.images.picture import Disposal, Layer, Picture, not_an_image
from server.images.sampling import starts
from server.images.seen import in_eight_bits

TRANSPARENT = (0, 0, 0, 0)
BAND_ROWS = 64
GREY = ("1", "L", "LA", "I;16")


def too_slow() -> DeadlineExceeded:
    # The cost of a file is limited before it is decoded, so a late one means that the server is busy.
    return DeadlineExceeded("The images of this request could not be fetched and decoded in time. Try again later.")


def decoded(layer: Layer, picture: Picture, draft: tuple[int, int]) -> tuple[Image.Image, Colours]:
    """The pixels of one frame and how they become sRGB. A JPEG is decoded no larger than a resize to `draft` needs."""
    image = _opened(layer, picture)
    colours = Colours(picture.profiles, "L" if image.mode in GREY else image.mode)
    if picture.format == "JPEG" and colours.gentle:
        image.draft(None, draft)
    return _loaded(image, layer, picture), colours


def composed(picture: Picture, wanted: Sequence[int], deadline: float) -> Iterator[Image.Image]:
    """The canvas (RGBA) at each of the wanted frames, which are in order. The same canvas is reused for each."""
    canvas = Image.new("RGBA", (picture.width, picture.height), TRANSPARENT)
    first = starts(picture)
    at = 0
    for index in wanted:
        if first[index] > at:
            canvas.paste(TRANSPARENT, (0, 0, *canvas.size))
            at = first[index]
        for step in range(at, index):
            if time.monotonic() > deadline:
                raise too_slow()
            layer = picture.layers[step]
            if layer.disposal is Disposal.KEEP:
                _draw(canvas, layer, picture)
            elif layer.disposal is Disposal.CLEAR:
                canvas.paste(TRANSPARENT, _box(canvas, layer))
        layer = picture.layers[index]
        box = _box(canvas, layer)
        hidden = canvas.crop(box) if layer.disposal is Disposal.RESTORE else None
        _draw(canvas, layer, picture)
        yield canvas
        if hidden is not None:
            canvas.paste(hidden, box)
        elif layer.disposal is Disposal.CLEAR:
            canvas.paste(TRANSPARENT, box)
        at = index + 1


def _opened(layer: Layer, picture: Picture) -> ImageFile.ImageFile:
    image = Image.open(io.BytesIO(b"".join(layer.pieces)), formats=(picture.format,))
    if image.size != (layer.width, layer.height) or getattr(image, "n_frames", 1) != 1:
        raise not_an_image()
    _mend_transparent_colour(image, picture.bit_depth)
    return image


def _loaded(image: ImageFile.ImageFile, layer: Layer, picture: Picture) -> Image.Image:
    """Raises InvalidImage if the pixels are not those that the reader accepted."""
    size = image.size
    image.load()
    if image.size != size or (picture.palette_size and _largest_index(image) >= picture.palette_size):
        raise not_an_image()
    return _with_key(image, layer, picture) if picture.key else image


def _box(canvas: Image.Image, layer: Layer) -> tuple[int, int, int, int]:
    """The part of the frame's rectangle that lies on the canvas. It may be empty."""
    left, top = min(layer.left, canvas.width), min(layer.top, canvas.height)
    return left, top, min(canvas.width, left + layer.width), min(canvas.height, top + layer.height)


def _draw(canvas: Image.Image, layer: Layer, picture: Picture) -> None:
    left, top, right, bottom = box = _box(canvas, layer)
    if left == right or top == bottom:
        return
    frame = in_eight_bits(_loaded(_opened(layer, picture), layer, picture))
    if frame.size != (right - left, bottom - top):
        frame = frame.crop((0, 0, right - left, bottom - top))
    if frame.mode != "RGBA" or not layer.over:
        canvas.paste(frame.convert("RGBA") if frame.mode == "L" else frame, box)
    else:
        canvas.alpha_composite(frame, (left, top))


def _largest_index(image: Image.Image) -> int:
    return max(index for index, count in enumerate(image.histogram()) if count) if image.mode == "P" else 0


def _mend_transparent_colour(image: Image.Image, bit_depth: int) -> None:
    """Bring the one transparent colour of a PNG to 8 bits: Pillow does that to the pixels, but not to this colour."""

    def in_eight_bits(value: int) -> int:
        return (value & largest) * 255 // largest

    colour = image.info.get("transparency")
    largest = (1 << bit_depth) - 1
    if isinstance(colour, tuple):
        image.info["transparency"] = tuple(map(in_eight_bits, colour))
    elif isinstance(colour, int) and image.mode == "L" and image.format == "PNG":
        image.info["transparency"] = in_eight_bits(colour)


def _with_key(image: Image.Image, layer: Layer, picture: Picture) -> Image.Image:
    """A 16-bit PNG with its transparent colour. All 16 bits of the colour count, but Pillow's pixels have only 8."""
    key = np.array(picture.key)
    lower = None
    if image.mode != "I;16":
        lower = _opened(layer, picture)
        (tile,) = lower.tile
        lower.tile = [tile._replace(args="RGB;16L")]
        lower.load()
    alpha = Image.new("L", image.size)
    for top in range(0, image.height, BAND_ROWS):
        box = (0, top, image.width, min(top + BAND_ROWS, image.height))
        samples = np.asarray(image.crop(box))
        if lower is None:
            opaque = samples != key
        else:
            opaque = ((samples != key >> 8) | (np.asarray(lower.crop(box)) != key & 255)).any(axis=-1)
        alpha.paste(Image.fromarray(opaque.astype(np.uint8) * 255), box)
    result = in_eight_bits(image)
    result.putalpha(alpha)
    return result
