"""Reads the first picture of a JPEG file as libjpeg does, and writes it without the parts that do not change it."""

import re
import struct
from functools import partial

from server.domain.pictures import PictureSizes
from server.images.exif import orientation_of, pictures_of
from server.images.picture import MAX_SEGMENTS, Buffer, Layer, Picture, not_an_image, too_slow_to_decode
from server.images.sizes import draft_reduction

MAX_SCAN_PIXELS = 1_000_000_000
"""Pixels times scans of a progressive JPEG: a scan of ten bytes costs a pass over the whole picture."""

MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]", re.DOTALL)
"""A marker with a segment: not fill, not stuffing in a scan, and not a restart."""

START_OF_IMAGE, END_OF_IMAGE, START_OF_SCAN, COMMENT = 0xD8, 0xD9, 0xDA, 0xFE
START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
TABLES = frozenset({0xC4, 0xCC, 0xDB, 0xDD})
"""Huffman tables, arithmetic conditioning, quantization tables, restart interval."""
EMPTY_COMMENT = b"\xff\xfe\0\x02"
IGNORED = frozenset({*range(0xE0, 0xF0), COMMENT, 0xDC})
"""Segments that libjpeg skips, except JFIF's and Adobe's."""


class _Reader:
    """Follows the segments of a file and collects those that affect the picture."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self.pieces: list[Buffer] = [b"\xff\xd8"]
        self.width = self.height = self.scans = 0
        self.samples = 0.0
        self.progressive = self.framed = False
        self.exif: memoryview | None = None
        self.pictures = 1
        self._profile: dict[int, memoryview] = {}
        self._profile_parts = 0
        self._read(data)

    @property
    def profile(self) -> list[memoryview] | None:
        parts = [self._profile.get(number) for number in range(1, self._profile_parts + 1)]
        found = [part for part in parts if part is not None]
        return found if found and len(found) == len(parts) else None

    def _read(self, data: bytes) -> None:
        position = 2
        for _ in range(MAX_SEGMENTS):
            marker = MARKER.search(data, position)
            if marker is None:
                raise not_an_image()
            if self.scans:
                self.pieces.append(self._data[position : marker.start()])
            code = data[marker.start() + 1]
            if code == END_OF_IMAGE:
                self.pieces.append(b"\xff\xd9")
                return
            (length,) = struct.unpack_from(">H", data, marker.end())
            position = marker.end() + length
            if length < 2 or position > len(data):
                raise not_an_image()
            self._segment(code, self._data[marker.start() : position], self._data[marker.end() + 2 : position])
            if self.scans > 1 and self.scans * self.width * self.height > MAX_SCAN_PIXELS:
                break
        raise too_slow_to_decode()

    def _segment(self, code: int, whole: memoryview, content: memoryview) -> None:
        if code in START_OF_FRAME:
            self._frame(code, content)
        elif code == START_OF_SCAN:
            if not self.framed:
                raise not_an_image()
            self.scans += 1
        elif code in IGNORED:
            if self.scans:  # it ends the scan, whatever its content
                self.pieces.append(EMPTY_COMMENT)
            else:
                self._application(code, whole, content)
            return
        elif code not in TABLES:
            raise not_an_image()
        self.pieces.append(whole)

    def _frame(self, code: int, content: memoryview) -> None:
        if self.framed:
            raise not_an_image()
        self.framed, self.progressive = True, code in PROGRESSIVE
        self.height, self.width, components = struct.unpack_from(">HHB", content, 1)
        sizes = [(content[7 + 3 * index] >> 4) * (content[7 + 3 * index] & 15) for index in range(components)]
        self.samples = sum(sizes) / max(1, max(sizes, default=0))

    def _application(self, code: int, whole: memoryview, content: memoryview) -> None:
        """Keep a segment that affects colours or orientation. Of several, browsers use the first."""
        if (code == 0xE0 and bytes(content[:5]) == b"JFIF\0") or (code == 0xEE and bytes(content[:5]) == b"Adobe"):
            self.pieces.append(whole)
        elif code == 0xE1 and bytes(content[:5]) == b"Exif\0" and self.exif is None:
            self.exif = content[6:]
        elif code == 0xE2 and bytes(content[:4]) == b"MPF\0":
            self.pictures = pictures_of(content[4:])
        elif code == 0xE2 and bytes(content[:12]) == b"ICC_PROFILE\0" and len(content) > 14:
            self._profile_parts = self._profile_parts or content[13]
            self._profile.setdefault(content[12], content[14:])


def read_jpeg(data: bytes, sizes: PictureSizes) -> Picture:
    """An MPO or a motion photo goes on after its first picture. Nothing after that is read.

    Raises InvalidImage and ImageTooLarge, and IndexError or struct.error for a file that ends too soon.
    """
    found = _Reader(data)
    if not found.framed or not found.scans:
        raise not_an_image()
    width, height = found.width, found.height
    reduction = draft_reduction(width, height, sizes) if width and height else 1
    # All coefficients of a progressive picture stay in memory until its last scan, whatever size it is decoded to.
    coefficients = 2 * found.samples if found.progressive else 0.0
    profile = found.profile
    return Picture(
        "JPEG",
        width,
        height,
        4 / reduction**2 + coefficients,
        (Layer(0, 0, width, height, tuple(found.pieces), opaque=True),),
        found.pictures,
        profiles=() if profile is None else (partial(b"".join, profile),),
        orientation=1 if found.exif is None else orientation_of(found.exif),
        work=width * height * max(1, found.scans),
    )
