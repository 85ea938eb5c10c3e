"""Image files made by hand, chunk by chunk, so that they can be wrong in one place."""

import io
import struct
import time
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from server.families.llama_guard.pictures import SIZES
from server.images import DecodedImage, ImageDecoder, ImageLimits

RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
PALETTE = (RED, GREEN, BLUE, YELLOW)

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def decode(data: bytes, **limits) -> DecodedImage:
    return ImageDecoder(ImageLimits(**{"max_images": 50, **limits}), SIZES)._decode_file(data, time.monotonic() + 60)


def shown(data: bytes) -> Image.Image:
    """The one picture that the model is shown of a file."""
    (picture,) = decode(data).frames
    return picture


def pixel(picture: Image.Image, at: tuple[int, int]) -> tuple[int, ...]:
    """The samples of one pixel of a picture with several channels."""
    samples = picture.getpixel(at)
    assert isinstance(samples, tuple)
    return samples


def colours_in(picture: Image.Image) -> set[tuple[int, ...]]:
    """Every colour of an RGB picture."""
    assert picture.mode == "RGB"
    return {
        (int(red), int(green), int(blue)) for red, green, blue in np.unique(np.asarray(picture).reshape(-1, 3), axis=0)
    }


def contrast(picture: Image.Image) -> int:
    """Between the brightest and the darkest pixel, of 255."""
    greys = np.asarray(picture.convert("L"))
    return int(greys.max()) - int(greys.min())


def colours(data: bytes, **limits) -> list[str]:
    """What the frames show in the centres of their four quarters, by the first letters of the colours."""
    names: dict[tuple[int, ...], str] = {RED: "R", GREEN: "G", BLUE: "B", YELLOW: "Y", WHITE: "W", BLACK: "K"}

    def name(picture: Image.Image) -> str:
        across, down = picture.width // 4, picture.height // 4
        corners = ((across, down), (3 * across, down), (across, 3 * down), (3 * across, 3 * down))
        return "".join(names.get(pixel(picture, corner), "?") for corner in corners)

    return [name(picture) for picture in decode(data, **limits).frames]


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# --- PNG -------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes = b"", *, broken: bool = False) -> bytes:
    checksum = zlib.crc32(kind + data) ^ broken
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


END = chunk(b"IEND")


def header(width: int = 40, height: int = 40, bit_depth: int = 8, colour_type: int = 2) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0))


def rows(sample: Sequence[int], width: int = 40, height: int = 40) -> bytes:
    return zlib.compress((b"\0" + bytes(sample) * width) * height)


def png(*chunks: bytes, sample: Sequence[int] = RED, first: bytes | None = None) -> bytes:
    """A PNG of 40 x 40 samples of one value; `chunks` stand between its header and its pixels."""
    return SIGNATURE + (header() if first is None else first) + b"".join(chunks) + chunk(b"IDAT", rows(sample)) + END


def control(frames: int, plays: int = 0) -> bytes:
    return chunk(b"acTL", struct.pack(">II", frames, plays))


def frame(number: int, size=(40, 40), at=(0, 0), delay=(1, 10), disposal: int = 0, blend: int = 0) -> bytes:
    return chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, *size, *at, *delay, disposal, blend))


def frame_data(number: int, sample: Sequence[int], size=(40, 40)) -> bytes:
    return chunk(b"fdAT", struct.pack(">I", number) + rows(sample, *size))


def apng(*chunks: bytes) -> bytes:
    return SIGNATURE + header() + b"".join(chunks) + END


def still(sample: Sequence[int] = RED) -> bytes:
    return chunk(b"IDAT", rows(sample))


# --- GIF -------------------------------------------------------------------------------------------------

FOREVER = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"


def lzw(width: int, height: int, index: Callable[[int], int]) -> bytes:
    """Indices of 2 bits, without compression."""
    bits, number = 0, 0
    for pixel in range(width * height):
        for code in (4, index(pixel)) if pixel % 2 == 0 else (index(pixel),):
            bits |= code << number
            number += 3
    bits |= 5 << number
    data = bits.to_bytes((number + 10) // 8, "little")
    blocks = (data[start : start + 255] for start in range(0, len(data), 255))
    return b"\x02" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"


def gif_frame(
    colour: tuple[int, int, int] = RED,
    size=(40, 40),
    at=(0, 0),
    delay: int = 10,
    disposal: int = 0,
    transparent: int | None = None,
    extension: bytes | None = None,
    index: Callable[[int], int] | None = None,
    coded: tuple[int, int] | None = None,
) -> bytes:
    """`delay` in hundredths of a second; `coded` is the size that the data really have."""
    control = b"\x21\xf9\x04" + bytes([disposal << 2 | (transparent is not None)]) + struct.pack("<H", delay)
    control += bytes([transparent or 0, 0])
    descriptor = b"," + struct.pack("<HHHHB", *at, *size, 0)
    width, height = coded or size
    pixels = lzw(width, height, index or (lambda _: PALETTE.index(colour)))
    return (control if extension is None else extension) + descriptor + pixels


def gif(*parts: bytes, screen=(40, 40), palette=PALETTE, trailer: bytes = b";") -> bytes:
    table = bytes(sample for colour in palette for sample in colour)
    flags = {0: 0, 2: 0x80, 4: 0x81}[len(palette)]
    return b"GIF89a" + struct.pack("<HHBBB", *screen, flags, 0, 0) + table + b"".join(parts) + trailer


# --- WebP ------------------------------------------------------------------------------------------------


def webp(*chunks: bytes) -> bytes:
    content = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(content)) + content


def webp_chunk(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def u24(number: int) -> bytes:
    return number.to_bytes(3, "little")


def extended(width: int = 40, height: int = 40, flags: int = 0) -> bytes:
    return webp_chunk(b"VP8X", bytes([flags, 0, 0, 0]) + u24(width - 1) + u24(height - 1))


def bitstream(colour: Sequence[int] = RED, size=(40, 40), *, lossless: bool = True) -> bytes:
    """The chunks with the pixels out of a still WebP, the alpha plane included."""
    mode = "RGBA" if len(colour) == 4 else "RGB"
    data = saved(Image.new(mode, size, tuple(colour)), "WEBP", lossless=lossless, exact=True)
    found, at = b"", 12
    while at < len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind in (b"VP8 ", b"VP8L", b"ALPH"):
            found += data[at : at + 8 + length + length % 2]
        at += 8 + length + length % 2
    return found


def webp_animation(*frames: bytes, flags: int = 0x12, loops: int = 0) -> bytes:
    return webp(extended(flags=flags), webp_chunk(b"ANIM", struct.pack("<IH", 0xFFFFFFFF, loops)), *frames)


def webp_frame(colour=RED, size=(40, 40), at=(0, 0), ms: int = 100, flags: int = 0, pixels: bytes | None = None):
    place = u24(at[0] // 2) + u24(at[1] // 2) + u24(size[0] - 1) + u24(size[1] - 1) + u24(ms) + bytes([flags])
    return webp_chunk(b"ANMF", place + (bitstream(colour, size) if pixels is None else pixels))


# --- JPEG ------------------------------------------------------------------------------------------------


def segment(marker: int, data: bytes = b"") -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def inserted(data: bytes, *segments: bytes, at: int = 2) -> bytes:
    return data[:at] + b"".join(segments) + data[at:]


def tiff(orientation: int, kind: int = 3, count: int = 1) -> bytes:
    value = struct.pack(">HH", orientation, 0) if kind == 3 else struct.pack(">I", orientation)
    return b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHI", 0x112, kind, count) + value + bytes(4)
