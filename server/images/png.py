"""Reads PNG and APNG as browsers do, and writes each frame as a separate PNG."""

import struct
import zlib
from dataclasses import dataclass, field
from functools import partial

from server.images.exif import orientation_of
from server.images.picture import (
    MAX_SEGMENTS,
    Buffer,
    Disposal,
    Layer,
    Picture,
    not_an_image,
    too_slow_to_decode,
)
from server.images.profiles import Profile, inflated, of_code_points, of_gamma

SIGNATURE = b"\x89PNG\r\n\x1a\n"
BIT_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
GREY, COLOUR, INDEXED = 0, 2, 3
ANCILLARY = 0x20
"""The bit in a chunk's name that marks it as optional."""
PIXELS = (b"IDAT", b"fdAT")
END = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))

ONCE_BEFORE_PIXELS = frozenset({b"PLTE", b"tRNS", b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"eXIf", b"acTL"})
"""Chunks that count only before the pixels. Of several valid ones, the first counts."""


@dataclass(slots=True)
class _Frame:
    """A frame control chunk, and the pieces of the pixels that follow it."""

    left: int
    top: int
    width: int
    height: int
    delay_ms: float = 0.0
    disposal: Disposal = Disposal.KEEP
    over: bool = False
    pixels: list[Buffer] = field(default_factory=list)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = len(SIGNATURE)
        self.found: dict[bytes, memoryview] = {}
        self.frames: list[_Frame] = []
        """The frames of the animation. The first one may be `still`."""
        self.still = _Frame(0, 0, 0, 0)
        self._sequence = 0
        self._complete = False
        kind, header, intact = self._next()
        if kind != b"IHDR" or len(header) != 13 or not intact:
            raise not_an_image()
        self.header = bytes(header)
        self.still.width, self.still.height = struct.unpack_from(">II", header)
        self.bit_depth, self.colour, method, filters, interlaced = header[8:13]
        if self.bit_depth not in BIT_DEPTHS.get(self.colour, ()) or method or filters or interlaced > 1:
            raise not_an_image()

    def read(self) -> None:
        run_is_over = False
        for _ in range(MAX_SEGMENTS):
            if self.still.pixels and self._is_cut():  # a picture is complete without the chunks after its pixels
                return
            kind, content, intact = self._next()
            if not intact and self._is_needed(kind):
                raise not_an_image()
            if kind == b"IEND":
                return
            run_is_over = bool(self.still.pixels) and (run_is_over or kind != b"IDAT")
            if kind == b"IDAT":
                if not run_is_over:
                    self.still.pixels.append(self._data[self._at - len(content) - 12 : self._at])
            elif not kind[0] & ANCILLARY and kind != b"PLTE":
                raise not_an_image()
            elif intact:
                self._take(kind, content)
        raise too_slow_to_decode()

    def _take(self, kind: bytes, content: memoryview) -> None:
        if kind in ONCE_BEFORE_PIXELS:
            if not self.still.pixels and kind not in self.found and self._is_valid(kind, content):
                self.found[kind] = content
        elif kind == b"fcTL" and len(self.frames) == self.declared:
            self._complete = True
        elif kind in (b"fcTL", b"fdAT") and self.declared and not self._complete:
            self._animation(kind, content)

    @property
    def declared(self) -> int:
        """The number of frames that the file declares. A file that declares none is a still picture."""
        control = self.found.get(b"acTL")
        return 0 if control is None else int(struct.unpack_from(">I", control)[0])

    def _is_cut(self) -> bool:
        if self._at + 12 > len(self._data):
            return True
        (length,) = struct.unpack_from(">I", self._data, self._at)
        return self._at + 12 + length > len(self._data) and self._data[self._at + 4 : self._at + 8] not in PIXELS

    def _next(self) -> tuple[bytes, memoryview, bool]:
        """Name and content of the next chunk, and whether its checksum is right. The checksum of pixels is ignored."""
        length, kind = struct.unpack_from(">I4s", self._data, self._at)
        start, end = self._at + 8, self._at + 8 + length
        (checksum,) = struct.unpack_from(">I", self._data, end)
        self._at = end + 4
        intact = kind in PIXELS or zlib.crc32(self._data[start - 4 : end]) == checksum
        return kind, self._data[start:end], intact

    def _is_needed(self, kind: bytes) -> bool:
        return not kind[0] & ANCILLARY or (kind == b"fcTL" and bool(self.declared) and not self._complete)

    def _is_valid(self, kind: bytes, content: memoryview) -> bool:
        length = len(content)
        match kind:
            case b"PLTE":
                return True
            case b"tRNS":
                if self.colour == INDEXED:
                    return b"PLTE" in self.found and length > 0
                return length == {GREY: 2, COLOUR: 6}.get(self.colour)
            case b"acTL":
                return length == 8 and 0 < struct.unpack_from(">I", content)[0] < 2**31
            case b"sRGB":
                return length == 1 and content[0] <= 3
            case b"gAMA":
                return length == 4 and struct.unpack(">I", content)[0] > 0
            case b"cHRM":
                return length == 32
            case b"cICP":
                return length == 4
            case _:
                return True

    def _is_open(self) -> bool:
        return bool(self.frames) and not self.frames[-1].pixels and self.frames[-1] is not self.still

    def _animation(self, kind: bytes, content: memoryview) -> None:
        (sequence,) = struct.unpack_from(">I", content)
        if sequence != self._sequence:
            raise not_an_image()
        self._sequence += 1
        if kind == b"fdAT":
            if not self.frames or self.frames[-1] is self.still:
                raise not_an_image()
            self.frames[-1].pixels += _chunk(b"IDAT", content[4:])
        elif len(content) != 26 or self._is_open():
            raise not_an_image()
        else:
            self._control(content)

    def _control(self, content: memoryview) -> None:
        width, height, left, top, delay, per, disposal, blend = struct.unpack_from(">IIIIHHBB", content, 4)
        outside = left + width > self.still.width or top + height > self.still.height
        if outside or not width or not height or disposal > 2 or blend > 1:
            raise not_an_image()
        frame = _Frame(left, top, width, height)
        if not self.still.pixels:
            if self.frames or (width, height) != (self.still.width, self.still.height):
                raise not_an_image()
            frame = self.still
        frame.delay_ms = 1000.0 * delay / (per or 100)
        frame.disposal = (Disposal.KEEP, Disposal.CLEAR, Disposal.RESTORE)[disposal]
        frame.over = blend == 1
        self.frames.append(frame)


def read_png(data: bytes) -> Picture:
    """Raises InvalidImage and ImageTooLarge, and IndexError or struct.error for a file that ends too soon."""
    reader = _Reader(data)
    reader.read()
    palette, transparency = reader.found.get(b"PLTE"), reader.found.get(b"tRNS")
    if not reader.still.pixels:
        raise not_an_image()
    if reader.colour == INDEXED and (palette is None or len(palette) % 3 or not 3 <= len(palette) <= 768):
        raise not_an_image()
    if len(reader.frames) < reader.declared:
        raise not_an_image()
    common: list[Buffer] = []
    key = None
    if reader.colour == INDEXED and palette is not None:
        common += _chunk(b"PLTE", palette)
    if transparency is not None:
        if reader.bit_depth == 16:
            key = struct.unpack(f">{len(transparency) // 2}H", transparency)
        else:
            common += _chunk(b"tRNS", transparency[: len(palette or b"") // 3] if palette else transparency)
    opaque = transparency is None and reader.colour in (GREY, COLOUR, INDEXED)
    frames = [_layer(reader, frame, common, opaque=opaque) for frame in reader.frames]
    still = _layer(reader, reader.still, common, opaque=opaque)
    animated = bool(frames)
    (plays,) = struct.unpack_from(">I", reader.found[b"acTL"], 4) if animated else (0,)
    return Picture(
        "PNG",
        reader.still.width,
        reader.still.height,
        16 if animated or key else 4,
        tuple(frames) or (still,),
        len(frames) or 1,
        plays == 0,
        poster=still if animated and reader.frames[0] is not reader.still else None,
        profiles=_profiles(reader.found),
        orientation=orientation_of(reader.found.get(b"eXIf", b"")),
        bit_depth=reader.bit_depth,
        key=key,
        palette_size=len(palette or b"") // 3 if reader.colour == INDEXED else 0,
    )


def _layer(reader: _Reader, frame: _Frame, common: list[Buffer], *, opaque: bool) -> Layer:
    header = _chunk(b"IHDR", struct.pack(">II", frame.width, frame.height) + reader.header[8:])
    return Layer(
        frame.left,
        frame.top,
        frame.width,
        frame.height,
        (SIGNATURE, *header, *common, *frame.pixels, END),
        frame.delay_ms,
        frame.disposal,
        frame.over,
        opaque,
    )


def _chunk(kind: bytes, content: Buffer) -> list[Buffer]:
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return [struct.pack(">I4s", len(content), kind), content, struct.pack(">I", checksum)]


def _profiles(found: dict[bytes, memoryview]) -> tuple[Profile, ...]:
    """The profiles of all chunks that describe colours, in the browsers' order of precedence."""
    if b"cICP" in found:
        return (partial(of_code_points, bytes(found[b"cICP"])),)
    profiles: list[Profile] = []
    if b"iCCP" in found:
        name, _, rest = bytes(found[b"iCCP"][:81]).partition(b"\0")
        if 1 <= len(name) <= 79 and rest[:1] == b"\0":
            profiles.append(partial(inflated, found[b"iCCP"][len(name) + 2 :]))
    if b"gAMA" in found and b"sRGB" not in found:
        primaries = bytes(found[b"cHRM"]) if b"cHRM" in found else None
        profiles.append(partial(of_gamma, bytes(found[b"gAMA"]), primaries))
    return tuple(profiles)
