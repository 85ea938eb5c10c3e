"""The one fact of EXIF that changes a picture: its orientation. And the IFD in which MPO counts its pictures."""

import struct

ORIENTATION, PICTURES = 0x0112, 0xB001
SHORT, LONG = 3, 4


def orientation_of(exif: bytes | memoryview) -> int:
    """The orientation, 1 to 8, by the first entry as in browsers. 1 (upright) if there is none or it is unreadable."""
    value = _value(bytes(exif).removeprefix(b"Exif\0\0"), ORIENTATION, SHORT)
    return value if value is not None and 1 <= value <= 8 else 1


def pictures_of(mpf: bytes | memoryview) -> int:
    """The number of pictures that an MPO declares, at least 1."""
    return max(1, _value(bytes(mpf), PICTURES, LONG) or 1)


def _value(tiff: bytes, tag: int, kind: int) -> int | None:
    """The first entry of this tag in the first IFD, if it is one number of the expected type."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, start)
        for index in range(entries):
            at = start + 2 + 12 * index
            found, its_kind, count = struct.unpack_from(f"{order}HHI", tiff, at)
            if found == tag:
                if (its_kind, count) != (kind, 1):
                    return None
                (value,) = struct.unpack_from(f"{order}{'H' if kind == SHORT else 'I'}", tiff, at + 8)
                return int(value)
    except struct.error:
        pass
    return None
