"""A decoded frame as a person sees it: upright, in sRGB, on a ground that hides nothing, and no larger than needed."""

import math

import numpy as np
from PIL import Image

from server.errors import InvalidImage
from server.images.colours import Colours
from server.images.grounds import on_grounds
from server.images.sizes import MIN_SIDE, halved_size

BAND_ROWS = 64
"""Rows of the result that are resized at once."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to what undoes it."""


def as_seen(image: Image.Image, size: tuple[int, int], orientation: int, colours: Colours) -> list[Image.Image]:
    """One rendering of a decoded frame, or two, at `size` (width and height, before it is turned): RGB and opaque.

    It is `image` itself, without what else was in the file, where nothing was to be done.
    """
    frame = resized(image, size, colours)
    alpha = frame.getchannel("A") if frame.mode == "RGBA" else None
    if colours.gentle or image.size == size:
        frame = colours.in_srgb(frame)
    elif frame.mode != "RGB":
        frame = frame.convert("RGB")
    if alpha is None or alpha.getextrema() == (255, 255):
        return [_upright(frame, orientation)]
    shown = on_grounds(frame, alpha)
    if len(shown) > 1:
        half = halved_size(*frame.size)
        shown = [one if one.size == half else one.resize(half, Image.Resampling.BILINEAR) for one in shown]
    return [_upright(one, orientation) for one in shown]


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    if orientation in UPRIGHT:
        picture = picture.transpose(UPRIGHT[orientation])
    if min(picture.size) < MIN_SIDE:
        enlarged = max(MIN_SIDE, picture.width), max(MIN_SIDE, picture.height)
        picture = picture.resize(enlarged, Image.Resampling.NEAREST)
    picture.info = {}
    return picture


def resized(image: Image.Image, size: tuple[int, int], colours: Colours) -> Image.Image:
    """The image at `size` in L, RGB, RGBA or CMYK of 8 bits; in sRGB already where the colours are not gentle.

    The filter is the processor's, so that its own resize has nothing left to do. Band by band: a second picture
    of the full size would double the memory.
    """
    if image.size == size:
        return in_eight_bits(image)
    width, height = size
    scale = image.height / height
    bands = []
    for top in range(0, height, BAND_ROWS):
        bottom = min(top + BAND_ROWS, height)
        # The filter reaches one row of the result beyond the band.
        first = max(0, math.floor((top - 1) * scale))
        last = min(image.height, math.ceil((bottom + 1) * scale))
        band = in_eight_bits(image.crop((0, first, image.width, last)))
        if not colours.gentle:
            band = _with_alpha_of(colours.in_srgb(band), band)
        box = (0, top * scale - first, image.width, min(bottom * scale - first, band.height))
        bands.append(band.resize((width, bottom - top), Image.Resampling.BILINEAR, box=box))
    result = Image.new(bands[0].mode, size)
    for index, band in enumerate(bands):
        result.paste(band, (0, index * BAND_ROWS))
    return result


def _with_alpha_of(picture: Image.Image, other: Image.Image) -> Image.Image:
    if other.mode == "RGBA":
        picture.putalpha(other.getchannel("A"))
    return picture


def in_eight_bits(image: Image.Image) -> Image.Image:
    """L, RGB, RGBA or CMYK with 8 bits a sample; every kind of transparency becomes an alpha channel."""
    if image.mode == "I;16":
        # The high byte, as Pillow takes it of colours; of grey it would clip at 255.
        grey = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        grey.info = image.info
        image = grey
    if image.mode in ("LA", "RGBA") or "transparency" in image.info:
        return image.convert("RGBA")
    match image.mode:
        case "L" | "RGB" | "CMYK":
            return image
        case "1":
            return image.convert("L")
        case "P":
            return image.convert("RGB")
        case _:
            raise InvalidImage("The image has an unknown kind of pixels.")
