"""WebP: one reader, which shows what libwebp, and so every browser, shows."""

import struct

import pytest

from server.domain.errors import InvalidImage
from tests.images.files import (
    BLUE,
    GREEN,
    RED,
    bitstream,
    colours,
    decode,
    extended,
    pixel,
    shown,
    tiff,
    webp,
    webp_animation,
    webp_chunk,
    webp_frame,
)

QUARTER = (20, 20)
CLEAR = (255, 0, 0, 0)
FIRST, SECOND = webp_frame(), webp_frame(GREEN, QUARTER)
THIRD = webp_frame(BLUE, QUARTER, (20, 20))

FILES = {
    "simple": (webp(bitstream()), ["RRRR"]),
    "extended": (webp(extended(), bitstream()), ["RRRR"]),
    "two pictures in a simple file": (webp(bitstream(), bitstream(GREEN)), ["RRRR"]),
    "bytes behind the end": (webp(bitstream()) + b"x" * 50, ["RRRR"]),
    "metadata": (webp(extended(flags=0x0C), bitstream(), webp_chunk(b"XMP ", bytes(2 * 2**20))), ["RRRR"]),
    "alpha in a lossless picture, not announced": (webp(extended(), bitstream(CLEAR)), ["WWWW"]),
    "alpha in a lossy picture": (webp(extended(flags=0x10), bitstream(CLEAR, lossless=False)), ["WWWW"]),
    "three frames": (webp_animation(FIRST, SECOND, THIRD), ["RRRR", "GRRR", "GRRB"]),
    "a background colour is not shown": (webp_animation(webp_frame(size=QUARTER), THIRD), ["RWWW", "RWWB"]),
    "cleared": (webp_animation(FIRST, webp_frame(GREEN, QUARTER, flags=1), THIRD), ["RRRR", "GRRR", "WRRB"]),
    "replaced by transparent pixels": (webp_animation(FIRST, webp_frame(CLEAR, QUARTER, flags=2)), ["RRRR", "WRRR"]),
    "transparent pixels over others": (webp_animation(FIRST, webp_frame(CLEAR, QUARTER)), ["RRRR", "RRRR"]),
    "one frame": (webp_animation(FIRST), ["RRRR"]),
}


@pytest.mark.parametrize(("data", "seen"), FILES.values(), ids=FILES.keys())
def test_pictures_are_those_of_browsers(data, seen):
    assert colours(data, animation_frames=9) == seen


def test_alpha_of_a_lossy_picture_counts_only_where_it_is_announced():
    red, *_ = pixel(shown(webp(extended(), bitstream(CLEAR, lossless=False))), (20, 20))
    assert red > 250
    assert pixel(shown(webp(extended(), bitstream(CLEAR, lossless=False))), (20, 20))[1] < 5


def cut_short(data: bytes, by: int) -> bytes:
    """The file, but its header says that it is shorter."""
    return data[:4] + struct.pack("<I", len(data) - 8 - by) + data[8:]


REFUSED = {
    "a canvas larger than the picture": webp(extended(80, 80), bitstream()),
    "a canvas smaller than the picture": webp(extended(20, 20), bitstream()),
    "two pictures": webp(extended(), bitstream(), bitstream(GREEN)),
    "no picture": webp(extended()),
    "an unknown chunk first": webp(webp_chunk(b"abcd", b""), bitstream()),
    "a length beyond the file": cut_short(webp(bitstream()), -100),
    "a length within the pixels": cut_short(webp(bitstream()), 10),
    "frames in a still picture": webp(extended(), webp_chunk(b"ANIM", bytes(6)), FIRST, SECOND),
    "an animation without its header": webp(extended(flags=2), FIRST, SECOND),
    "an animation beside a picture": webp(extended(flags=2), webp_chunk(b"ANIM", bytes(6)), bitstream(BLUE), FIRST),
    "a frame outside": webp_animation(FIRST, webp_frame(GREEN, QUARTER, (30, 30))),
    "a frame of another size than its picture": webp_animation(
        FIRST, webp_frame(size=QUARTER, pixels=bitstream(GREEN, (30, 30)))
    ),
    "cut in the second frame": webp_animation(FIRST, SECOND)[:-20],
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_files_of_two_sizes_or_in_two_parts_are_refused(data):
    with pytest.raises(InvalidImage):
        decode(data)


def test_frames_behind_the_length_of_the_file_are_not_shown():
    whole, first = webp_animation(FIRST, SECOND), webp_animation(FIRST)
    assert colours(cut_short(whole, len(whole) - len(first))) == ["RRRR"]


def test_the_first_orientation_counts():
    turned, upright = webp_chunk(b"EXIF", tiff(6)), webp_chunk(b"EXIF", tiff(1))
    picture = bitstream(RED, (40, 20))
    assert shown(webp(extended(40, 20, 8), picture, turned, upright)).size == (20, 40)
    assert shown(webp(extended(40, 20, 8), picture, upright, turned)).size == (40, 20)
