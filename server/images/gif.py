"""Reads GIF as browsers do, and writes each frame as a separate GIF."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from server.images.picture import MAX_SEGMENTS, Disposal, Layer, Picture, not_an_image, too_slow_to_decode

EXTENSION, IMAGE, TRAILER = 0x21, 0x2C, 0x3B
GRAPHIC_CONTROL, APPLICATION = 0xF9, 0xFF
LOOPING = (b"NETSCAPE2.0", b"ANIMEXTS1.0")
PALETTE_BYTES = 3 * 256


@dataclass(slots=True)
class _Control:
    """A graphic control extension. It applies only to the next image."""

    disposal: Disposal = Disposal.KEEP
    delay_ms: float = 0.0
    transparent: int | None = None


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._blocks = 0
        self.at = 13

    def byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def take(self, size: int) -> memoryview:
        if self.at + size > len(self._data):
            raise IndexError
        self.at += size
        return self._data[self.at - size : self.at]

    def colours(self, flags: int) -> bytes | None:
        """The colour table that `flags` announce, filled up with black, which browsers show for other indices."""
        return bytes(self.take(3 << ((flags & 7) + 1))).ljust(PALETTE_BYTES, b"\0") if flags & 0x80 else None

    def sub_blocks(self) -> memoryview:
        """Sub-blocks up to and including the empty one that ends them."""
        data, start = self._data, self.at
        at, blocks = start, self._blocks
        while size := data[at]:  # the only loop that runs once for each 255 bytes of a file
            at += size + 1
            blocks += 1
            if blocks > MAX_SEGMENTS:
                raise too_slow_to_decode()
        self.at, self._blocks = at + 1, blocks
        return data[start : at + 1]

    def count(self) -> None:
        self._blocks += 1
        if self._blocks > MAX_SEGMENTS:
            raise too_slow_to_decode()


def _split(sub_blocks: memoryview) -> Iterator[memoryview]:
    at = 0
    while size := sub_blocks[at]:
        yield sub_blocks[at + 1 : at + 1 + size]
        at += size + 1


def read_gif(data: bytes) -> Picture:
    """The canvas is the logical screen, enlarged by the first frame. Later frames are not seen outside of it.

    Raises InvalidImage and ImageTooLarge, and IndexError or struct.error for a file that ends too soon.
    """
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    reader = _Reader(data)
    common = reader.colours(flags)
    layers: list[Layer] = []
    control, loops = _Control(), False
    while reader.at < len(data):
        reader.count()
        match reader.byte():
            case 0x21:
                label = reader.byte()
                blocks = reader.sub_blocks()
                if label == GRAPHIC_CONTROL:
                    control = _control(list(_split(blocks)))
                elif label == APPLICATION and bytes(blocks[1:12]) in LOOPING and blocks[0] == 11:
                    loops = loops or _loops(list(_split(blocks))[1:])
            case 0x2C:
                layer = _image(reader, common, control)
                layers.append(layer)
                control = _Control()
            case _:  # the trailer, or bytes at which every viewer stops reading
                break
    if not layers:
        raise not_an_image()
    width = max(width, layers[0].left + layers[0].width)
    height = max(height, layers[0].top + layers[0].height)
    # Canvas, frame with and without palette, and the area that a frame hides until it is undone.
    alone = len(layers) == 1 and (layers[0].width, layers[0].height) == (width, height)
    return Picture("GIF", width, height, 4 if alone else 16, tuple(layers), len(layers), loops)


def _control(blocks: list[memoryview]) -> _Control:
    if [len(block) for block in blocks] != [4]:
        raise not_an_image()
    flags, delay, transparent = struct.unpack("<BHB", blocks[0])
    # Early programs wrote 4 for 3.
    disposal = {2: Disposal.CLEAR, 3: Disposal.RESTORE, 4: Disposal.RESTORE}.get(flags >> 2 & 7, Disposal.KEEP)
    return _Control(disposal, 10.0 * delay, transparent if flags & 1 else None)


def _loops(blocks: list[memoryview]) -> bool:
    """Whether the animation never ends: otherwise its last frame stays."""
    return any(len(block) >= 3 and block[0] == 1 and not block[1] and not block[2] for block in blocks)


def _image(reader: _Reader, common: bytes | None, control: _Control) -> Layer:
    left, top, width, height, flags = struct.unpack("<HHHHB", reader.take(9))
    colours = reader.colours(flags) or common or bytes(PALETTE_BYTES)
    code_size = reader.take(1)
    transparent = control.transparent
    extension = b"" if transparent is None else bytes([EXTENSION, GRAPHIC_CONTROL, 4, 1, 0, 0, transparent, 0])
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF7, 0, 0) + colours + extension
    descriptor = struct.pack("<BHHHHB", IMAGE, 0, 0, width, height, flags & 0x40)
    return Layer(
        left,
        top,
        width,
        height,
        (head, descriptor, code_size, reader.sub_blocks(), bytes([TRAILER])),
        control.delay_ms,
        control.disposal,
        opaque=transparent is None,
    )
