"""A decoded frame as a person sees it: upright, in sRGB, on a ground that hides nothing, and no larger than needed."""

import math

import numpy as np
from PIL import Image

from server.domain.errors import InvalidImage
from server.domain.pictures import PictureSizes
from server.images.colours import Colours
from server.images.grounds import on_grounds
from server.images.sizes import MIN_SIDE, halved_size

BAND_ROWS, BAND_PIXELS = 64, 400_000
"""The rows of the result that are resized at once, and about how many source pixels they come from."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Maps an EXIF orientation to the operation that undoes it."""


def as_seen(
    image: Image.Image, size: tuple[int, int], orientation: int, colours: Colours, sizes: PictureSizes
) -> list[Image.Image]:
    """One or more renderings of a decoded frame at `size` (width and height before it is turned): RGB and opaque.

    If nothing needs to be done it is `image` itself, without anything else from the file.
    """
    return rendered(readings(image, colours, size, sizes), orientation, sizes)


def rendered(frames: list[Image.Image], orientation: int, sizes: PictureSizes) -> list[Image.Image]:
    """The renderings that `as_seen` makes from the `readings` of a frame. Removes them from the list."""
    shown = list[Image.Image]()
    while frames:
        frame = frames.pop(0)
        shown += [frame] if frame.mode == "RGB" else on_grounds(frame, sizes)
    return [_upright(one, orientation) for one in shown]


def readings(image: Image.Image, colours: Colours, size: tuple[int, int], sizes: PictureSizes) -> list[Image.Image]:
    """The image `resized`, for each reading of its colours. It is smaller if there are two."""
    if len(colours.readings) > 1:
        size = halved_size(*size, sizes)
    return [resized(image, reading, size) for reading in colours.readings]


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    if orientation in UPRIGHT:
        picture = picture.transpose(UPRIGHT[orientation])
    if min(picture.size) < MIN_SIDE:
        enlarged = max(MIN_SIDE, picture.width), max(MIN_SIDE, picture.height)
        picture = picture.resize(enlarged, Image.Resampling.NEAREST)
    picture.info = {}
    return picture


def resized(image: Image.Image, colours: Colours, size: tuple[int, int]) -> Image.Image:
    """The image at `size` in RGB or RGBA of 8 bits, in sRGB.

    The filter is that of the model's image processor, so that its own resize has nothing left to do. It works band by
    band, since a second picture of the full size would double the memory.
    """
    if image.size == size:
        return _in_srgb(in_eight_bits(image), colours)
    width, height = size
    scale = image.height / height
    rows = max(1, min(BAND_ROWS, int(BAND_PIXELS / scale / image.width)))
    result = None
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        # The filter needs one row of the result beyond the band.
        first = max(0, math.floor((top - 1) * scale))
        last = min(image.height, math.ceil((bottom + 1) * scale))
        band = in_eight_bits(image.crop((0, first, image.width, last)))
        if not colours.gentle:
            band = _in_srgb(band, colours)
        box = (0, top * scale - first, image.width, min(bottom * scale - first, band.height))
        band = band.resize((width, bottom - top), Image.Resampling.BILINEAR, box=box)
        result = result or Image.new(band.mode, size)
        result.paste(band, (0, top))
    assert result is not None
    return _in_srgb(result, colours) if colours.gentle else result


def _in_srgb(picture: Image.Image, colours: Colours) -> Image.Image:
    if picture.mode != "RGBA":
        return colours.in_srgb(picture)
    if colours.changes:
        alpha = picture.getchannel("A")
        picture = colours.in_srgb(picture)
        picture.putalpha(alpha)
    return picture


def in_eight_bits(image: Image.Image) -> Image.Image:
    """L, RGB, RGBA or CMYK with 8 bits a sample; every kind of transparency becomes an alpha channel."""
    if image.mode == "I;16":
        # The high byte, which Pillow uses for colours. For grey Pillow would clip at 255.
        grey = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        grey.info = image.info
        image = grey
    if image.mode == "LA" or "transparency" in image.info:
        return image.convert("RGBA")
    match image.mode:
        case "L" | "RGB" | "RGBA" | "CMYK":
            return image
        case "1":
            return image.convert("L")
        case "P":
            return image.convert("RGB")
        case _:
            raise InvalidImage("The image has pixels of an unknown kind. Send it in RGB.")
