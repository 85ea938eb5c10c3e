"""Reads WebP as libwebp does, and writes each frame as a still WebP of its own."""

import struct
from collections.abc import Iterator
from functools import partial

from server.images.exif import orientation_of
from server.images.picture import MAX_SEGMENTS, Buffer, Disposal, Layer, Picture, not_an_image, too_slow_to_decode

BYTES_PER_PIXEL = 17
ANIMATION, ALPHA, PROFILE = 0x02, 0x10, 0x20
CLEAR, REPLACE = 0x01, 0x02

Chunk = tuple[bytes, memoryview]


def read_webp(data: bytes) -> Picture:
    """Raises InvalidImage, and IndexError or struct.error for a file that ends too soon."""
    (size,) = struct.unpack_from("<I", data, 4)
    if size + 8 > len(data):
        raise not_an_image()
    chunks = _chunks(memoryview(data)[12 : size + 8])
    kind, content = next(chunks, (b"", memoryview(b"")))
    if kind in (b"VP8 ", b"VP8L"):  # Of a simple file, viewers read nothing else.
        layer = _still([(kind, content)], alpha=False)
        return Picture("WEBP", layer.width, layer.height, BYTES_PER_PIXEL, (layer,), 1)
    if kind != b"VP8X" or len(content) < 10:
        raise not_an_image()
    flags, width, height = content[0], _u24(content, 4) + 1, _u24(content, 7) + 1
    return _extended(flags, width, height, list(chunks))


def _extended(flags: int, width: int, height: int, chunks: list[Chunk]) -> Picture:
    first: dict[bytes, memoryview] = {}
    for kind, content in chunks:
        first.setdefault(kind, content)
    layers, loops = [], True
    if flags & ANIMATION:
        if b"ANIM" not in first or b"VP8 " in first or b"VP8L" in first:
            raise not_an_image()
        loops = struct.unpack_from("<H", first[b"ANIM"], 4) == (0,)
        layers = [_frame(content) for kind, content in chunks if kind == b"ANMF"]
        if any(layer.left + layer.width > width or layer.top + layer.height > height for layer in layers):
            raise not_an_image()
    elif b"ANMF" not in first:
        layers = [_still(chunks, alpha=bool(flags & ALPHA))]
        if (layers[0].width, layers[0].height) != (width, height):
            raise not_an_image()
    if not layers:
        raise not_an_image()
    profile = first.get(b"ICCP") if flags & PROFILE else None
    return Picture(
        "WEBP",
        width,
        height,
        BYTES_PER_PIXEL + 4 * bool(flags & ANIMATION),
        tuple(layers),
        len(layers),
        loops,
        profiles=() if profile is None else (partial(bytes, profile),),
        orientation=orientation_of(first.get(b"EXIF", b"")),
    )


def _chunks(content: memoryview) -> Iterator[Chunk]:
    at = number = 0
    while at < len(content):
        kind, size = struct.unpack_from("<4sI", content, at)
        if at + 8 + size > len(content):
            raise not_an_image()
        number += 1
        if number > MAX_SEGMENTS:
            raise too_slow_to_decode()
        yield kind, content[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def _frame(content: memoryview) -> Layer:
    left, top, width, height, delay = (_u24(content, at) for at in (0, 3, 6, 9, 12))
    flags = content[15]
    still = _still(list(_chunks(content[16:])), alpha=True)
    if (still.width, still.height) != (width + 1, height + 1):
        raise not_an_image()
    return Layer(
        2 * left,
        2 * top,
        still.width,
        still.height,
        still.pieces,
        float(delay),
        Disposal.CLEAR if flags & CLEAR else Disposal.KEEP,
        over=not flags & REPLACE,
        opaque=still.opaque,
    )


def _still(chunks: list[Chunk], *, alpha: bool) -> Layer:
    """The one bitstream among the chunks, with the alpha plane of a lossy one where it counts."""
    streams = [(kind, content) for kind, content in chunks if kind in (b"VP8 ", b"VP8L")]
    if len(streams) != 1:
        raise not_an_image()
    ((kind, stream),) = streams
    planes = [content for its_kind, content in chunks if its_kind == b"ALPH"] if alpha and kind == b"VP8 " else []
    width, height = _size(kind, stream)
    pieces: list[Buffer] = []
    if planes:
        head = struct.pack("<4sIB3x", b"VP8X", 10, ALPHA) + _bytes24(width - 1) + _bytes24(height - 1)
        pieces += [head, *_chunk(b"ALPH", planes[0])]
    pieces += _chunk(kind, stream)
    riff = struct.pack("<4sI4s", b"RIFF", 4 + sum(map(len, pieces)), b"WEBP")
    return Layer(0, 0, width, height, (riff, *pieces), opaque=kind == b"VP8 " and not planes)


def _size(kind: bytes, stream: memoryview) -> tuple[int, int]:
    if kind == b"VP8 " and bytes(stream[3:6]) == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", stream, 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and stream[0] == 0x2F:
        (bits,) = struct.unpack_from("<I", stream, 1)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    raise not_an_image()


def _chunk(kind: bytes, content: memoryview) -> list[Buffer]:
    return [struct.pack("<4sI", kind, len(content)), content, b"\0" * (len(content) % 2)]


def _u24(content: memoryview, at: int) -> int:
    low, high = struct.unpack_from("<HB", content, at)
    return int(low | high << 16)


def _bytes24(number: int) -> bytes:
    return number.to_bytes(3, "little")
