"""The one reader of image files: it finds the format by the first bytes."""

import struct

from server.domain.pictures import PictureSizes
from server.images.gif import read_gif
from server.images.jpeg import read_jpeg
from server.images.picture import Picture, not_an_image
from server.images.png import SIGNATURE, read_png
from server.images.webp import read_webp


def read(data: bytes, sizes: PictureSizes) -> Picture:
    """The accepted parts of a file. `sizes` decide the memory of a JPEG, which is decoded no larger than needed.

    Raises InvalidImage for any other file, and ImageTooLarge if it takes too long to read.
    """
    try:
        if data.startswith(b"\xff\xd8\xff"):
            return read_jpeg(data, sizes)
        if data.startswith(SIGNATURE):
            return read_png(data)
        if data.startswith((b"GIF87a", b"GIF89a")):
            return read_gif(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return read_webp(data)
    except (IndexError, struct.error):
        pass
    raise not_an_image()
