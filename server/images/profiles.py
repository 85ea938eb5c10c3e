"""ICC profiles: read from a PNG's compressed chunk, or made from its other chunks that describe colours."""

import struct
import zlib
from collections.abc import Callable

import numpy as np

from server.domain.errors import ImageTooLarge, InvalidImage

Profile = Callable[[], bytes]
"""Makes the profile when it is needed. Empty bytes mean sRGB, which leaves the samples unchanged."""

MAX_PROFILE_BYTES = 16 * 2**20
HEADER_BYTES = 128
CURVE_POINTS = 4096

SRGB_PRIMARIES = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
D65, D50 = (0.3127, 0.3290), (0.3457, 0.3585)
PRIMARIES = {
    1: SRGB_PRIMARIES,
    5: ((0.64, 0.33), (0.29, 0.60), (0.15, 0.06)),
    6: ((0.63, 0.34), (0.31, 0.595), (0.155, 0.07)),
    7: ((0.63, 0.34), (0.31, 0.595), (0.155, 0.07)),
    9: ((0.708, 0.292), (0.17, 0.797), (0.131, 0.046)),
    12: ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)),
}
"""H.273's colour primaries with a white point of D65, by their number."""

GAMMAS = {1: 2.4, 4: 2.2, 5: 2.8, 6: 2.4, 8: 1.0, 14: 2.4, 15: 2.4}
"""H.273's transfer characteristics that browsers show as a plain power, by their number."""
SRGB, PQ, HLG = 13, 16, 18

BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])

Chromaticity = tuple[float, float]


def inflated(compressed: memoryview) -> bytes:
    """An embedded profile, up to the length in its header. An unreadable one is ignored, as in viewers."""
    inflate = zlib.decompressobj()
    try:
        head = inflate.decompress(compressed, HEADER_BYTES)
        size = int.from_bytes(head[:4], "big")
        if head[36:40] != b"acsp":
            return b"broken"
        if size > MAX_PROFILE_BYTES:
            raise ImageTooLarge(f"A colour profile may have at most {MAX_PROFILE_BYTES} bytes.")
        return head + inflate.decompress(inflate.unconsumed_tail, max(1, size - len(head)))
    except zlib.error:
        return b"broken"


def of_gamma(gamma: bytes, chromaticities: bytes | None) -> bytes:
    """The profile of a PNG's gAMA chunk, with the primaries of its cHRM chunk."""
    (encoded,) = struct.unpack(">I", gamma)
    white, primaries = D65, SRGB_PRIMARIES
    if chromaticities is not None:
        values = [value / 100_000 for value in struct.unpack(">8I", chromaticities)]
        white, *primaries_read = zip(values[::2], values[1::2], strict=True)
        red, green, blue = primaries_read
        primaries = (red, green, blue)
    # Within 5 %, viewers use sRGB's own curve.
    if abs(encoded - 45_455) <= 2_300 and np.allclose((white, *primaries), (D65, *SRGB_PRIMARIES), atol=0.005):
        return b""
    return _profile(white, primaries, _ramp() ** (100_000 / encoded))


def of_code_points(content: bytes) -> bytes:
    """The profile of a PNG's cICP chunk. Raises InvalidImage for colours that no known browser shows."""
    primaries, transfer, matrix, full_range = content
    if primaries not in PRIMARIES or matrix or full_range != 1:
        raise InvalidImage("The image has colours of a kind that cannot be shown (its cICP chunk).")
    if (primaries, transfer) == (1, SRGB):
        return b""
    return _profile(D65, PRIMARIES[primaries], _transfer(transfer))


def _transfer(number: int) -> np.ndarray:
    """Maps samples to light, 0 to 1. High dynamic range is compressed into it, so that nothing is clipped."""
    samples = _ramp()
    if number in GAMMAS:
        return samples ** GAMMAS[number]
    if number == SRGB:
        return _srgb_curve()
    if number == PQ:
        power = samples ** (1 / 78.84375)
        quotient = np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)
        light = 10_000 / 203 * quotient ** (1 / 0.1593017578125)
        return light / (1 + light)
    if number == HLG:
        bright = (np.exp((samples - 0.55991073) / 0.17883277) + 0.28466892) / 12
        light = np.where(samples <= 0.5, samples**2 / 3, bright)
        return light**1.2
    raise InvalidImage("The image has colours of a kind that cannot be shown (its cICP chunk).")


def _ramp() -> np.ndarray:
    return np.linspace(0, 1, CURVE_POINTS)


def _srgb_curve() -> np.ndarray:
    samples = _ramp()
    return np.where(samples <= 0.04045, samples / 12.92, ((samples + 0.055) / 1.055) ** 2.4)


def _profile(white: Chromaticity, primaries: tuple[Chromaticity, ...], curve: np.ndarray) -> bytes:
    """An ICC profile of these colours, version 2: a matrix and one curve.

    Impossible chromaticities give an unusable profile, which is ignored as in viewers.
    """
    try:
        matrix = _to_d50(white, primaries)
        columns = [b"XYZ \0\0\0\0" + struct.pack(">3i", *np.round(column * 65536).astype(int)) for column in matrix.T]
    except (np.linalg.LinAlgError, ZeroDivisionError, ValueError, OverflowError, struct.error):
        return b"broken"
    levels = np.round(np.clip(curve, 0, 1) * 65535).astype(">u2").tobytes()
    white_point = b"XYZ \0\0\0\0" + struct.pack(">3i", *np.round(_xyz(D50) * 65536).astype(int))
    curve_tag = b"curv\0\0\0\0" + struct.pack(">I", CURVE_POINTS) + levels
    description = b"desc\0\0\0\0" + struct.pack(">I", 1) + bytes(79)
    tags = {b"desc": description, b"wtpt": white_point}
    tags |= dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True))
    offset = 128 + 4 + 12 * (len(tags) + 3)
    index, content = b"", b""
    for name, tag in tags.items():
        index += struct.pack(">4sII", name, offset + len(content), len(tag))
        content += tag + bytes(-len(tag) % 4)
    for name in (b"rTRC", b"gTRC", b"bTRC"):  # all three refer to the same curve
        index += struct.pack(">4sII", name, offset + len(content), len(curve_tag))
    content += curve_tag + bytes(-len(curve_tag) % 4)
    header = struct.pack(
        ">I4xI4s4s4s12x4s28x3i48x",
        offset + len(content),
        0x02100000,
        b"mntr",
        b"RGB ",
        b"XYZ ",
        b"acsp",
        *np.round(_xyz(D50) * 65536).astype(int),
    )
    return header + struct.pack(">I", len(tags) + 3) + index + content


def _xyz(point: Chromaticity) -> np.ndarray:
    x, y = point
    return np.array([x / y, 1, (1 - x - y) / y])


def _to_d50(white: Chromaticity, primaries: tuple[Chromaticity, ...]) -> np.ndarray:
    """From linear RGB to XYZ as ICC needs it, adapted to a white point of D50."""
    columns = np.stack([_xyz(primary) for primary in primaries], axis=1)
    unscaled = columns * np.linalg.solve(columns, _xyz(white))
    cones = (BRADFORD @ _xyz(D50)) / (BRADFORD @ _xyz(white))
    adapt = np.linalg.inv(BRADFORD) @ np.diag(cones) @ BRADFORD
    return np.asarray(adapt @ unscaled)
