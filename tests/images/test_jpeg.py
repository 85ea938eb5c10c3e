"""JPEG: one reader, which shows what libjpeg, and so every browser, shows."""

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from server.domain.errors import GuardError, InvalidImage
from tests.images.files import decode, inserted, pixel, saved, segment, shown, tiff
from tests.images.test_png import LINEAR, SRGB

HALVES = Image.new("RGB", (64, 32), (255, 0, 0))
HALVES.paste((0, 0, 255), (0, 16, 64, 32))
PLAIN = saved(HALVES, "JPEG", quality=95)
PROGRESSIVE = saved(HALVES, "JPEG", quality=95, progressive=True)
GREY = saved(Image.new("RGB", (64, 32), (100, 100, 100)), "JPEG", quality=95)

SOF = PLAIN.index(b"\xff\xc0")
SOF_BYTES = PLAIN[SOF : SOF + 2 + struct.unpack_from(">H", PLAIN, SOF + 2)[0]]
OTHER_SOF = SOF_BYTES[:5] + struct.pack(">HH", 16, 16) + SOF_BYTES[9:]
SOS = PLAIN.index(b"\xff\xda")


@pytest.mark.parametrize("data", [PLAIN, PROGRESSIVE])
@pytest.mark.parametrize("end", [b"", b"\0\0", b"\xff\xd8", b"\xff", b"\0" * 1000])
def test_a_file_without_its_end_is_refused_whatever_stands_there(data, end):
    with pytest.raises(InvalidImage):
        decode(data[:-2] + end)


REFUSED = {
    "two frames": inserted(PLAIN, OTHER_SOF, at=SOF),
    "the same frame twice": inserted(PLAIN, SOF_BYTES, at=SOF),
    "a frame in an unknown segment": inserted(PLAIN, b"\xff\xf0" + struct.pack(">H", len(SOF_BYTES) + 2), at=SOF),
    "another frame behind the picture": inserted(PLAIN, OTHER_SOF, at=len(PLAIN) - 2),
    "an unknown marker": inserted(PLAIN, segment(0x02, b"x"), at=SOF),
    "a reserved marker": inserted(PLAIN, segment(0xF7, b"x"), at=SOF),
    "a second start": inserted(PLAIN, b"\xff\xd8", at=SOF),
    "a start within the scan": inserted(PLAIN, b"\xff\xd8", at=len(PLAIN) - 30),
    "other bytes behind the start": inserted(PLAIN, b"abc"),
    "12 bits": PLAIN[: SOF + 4] + b"\x0c" + PLAIN[SOF + 5 :],
    "no scan": PLAIN[:SOS] + b"\xff\xd9",
    "no frame": PLAIN[:SOF] + PLAIN[SOF + len(SOF_BYTES) :],
    "a segment of no length": inserted(PLAIN, b"\xff\xe5\0\0", at=SOF),
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_files_that_two_readers_could_read_in_two_ways_are_refused(data):
    with pytest.raises(InvalidImage):
        decode(data)


WHOLE = {
    "a comment": inserted(PLAIN, segment(0xFE, b"x" * 60_000), at=SOF),
    "junk between two segments": inserted(PLAIN, b"abc", at=SOF),
    "fill": inserted(PLAIN, b"\xff\xff\xff", at=SOF),
    "markers without a segment": inserted(PLAIN, b"\xff\x01\xff\xd3", at=SOF),
    "applications": inserted(PLAIN, *(segment(marker, b"x" * 99) for marker in range(0xE3, 0xEE))),
    "what comes behind the end": PLAIN + saved(Image.new("RGB", (8, 8)), "JPEG"),
    "lines defined again": inserted(PLAIN, segment(0xDC, struct.pack(">H", 32)), at=len(PLAIN) - 2),
    "no JFIF": PLAIN[:2] + PLAIN[20:],
    "Adobe beside JFIF": inserted(PLAIN, segment(0xEE, b"Adobe\0\x64\0\0\0\0\0"), at=20),
}


@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE.keys())
def test_what_does_not_change_the_picture_does_not_decide(data):
    assert shown(data).tobytes() == shown(PLAIN).tobytes()


def test_a_scan_ends_at_a_segment_as_in_browsers():
    """libjpeg takes nothing of a scan behind a segment in it: the lower right is grey."""
    pixels = np.asarray(shown(inserted(PLAIN, segment(0xFE, b"x"), at=len(PLAIN) - 30)))
    assert pixels[31, 63].tolist() == [128, 128, 128]
    assert pixels[0, 0].tolist() == [254, 0, 0]


def exif(content: bytes) -> bytes:
    return segment(0xE1, b"Exif\0\0" + content)


TWO_ENTRIES = b"MM\0*\0\0\0\x08\0\2" + b"".join(struct.pack(">HHIHH", 0x112, 3, 1, value, 0) for value in (1, 6))
ORIENTATIONS = {
    "turned": ([exif(tiff(6))], True),
    "of the wrong type": ([exif(tiff(6, kind=4))], False),
    "two numbers": ([exif(tiff(6, count=2))], False),
    "unknown": ([exif(tiff(9))], False),
    "turned, then upright": ([exif(tiff(6)), exif(tiff(1))], True),
    "upright, then turned": ([exif(tiff(1)), exif(tiff(6))], False),
    "broken, then turned": ([exif(b"xxxx"), exif(tiff(6))], False),
    "upright, then turned, in one": ([exif(TWO_ENTRIES + bytes(4))], False),
    "cut behind its entry": ([exif(tiff(6)[:-4])], True),
    "Exif written otherwise": ([segment(0xE1, b"Exif\0\1" + tiff(6))], True),
}


@pytest.mark.parametrize(("segments", "turned"), ORIENTATIONS.values(), ids=ORIENTATIONS.keys())
def test_pictures_are_turned_as_in_browsers(segments, turned):
    assert shown(inserted(PLAIN, *segments)).size == ((32, 64) if turned else (64, 32))


def part(profile: bytes, number: int = 1, parts: int = 1) -> bytes:
    return segment(0xE2, b"ICC_PROFILE\0" + bytes([number, parts]) + profile)


PROFILES = {
    "one": ([part(LINEAR)], True),
    "sRGB first": ([part(SRGB), part(LINEAR)], False),
    "sRGB second": ([part(LINEAR), part(SRGB)], True),
    "in two parts": ([part(LINEAR[:200], 1, 2), part(LINEAR[200:], 2, 2)], True),
    "in two parts, exchanged": ([part(LINEAR[200:], 2, 2), part(LINEAR[:200], 1, 2)], True),
    "a part is missing": ([part(LINEAR[:200], 1, 3), part(LINEAR[200:], 2, 3)], False),
    "number 0": ([part(LINEAR, 0)], False),
    "a part too many": ([part(LINEAR), part(SRGB, 2, 2)], True),
}


@pytest.mark.parametrize(("segments", "applied"), PROFILES.values(), ids=PROFILES.keys())
def test_profiles_are_applied_as_in_browsers(segments, applied):
    red, *_ = pixel(shown(inserted(GREY, *segments)), (30, 15))
    assert abs(red - (168 if applied else 100)) <= 2


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(PLAIN)),
            st.sampled_from(
                [OTHER_SOF, SOF_BYTES, b"\xff\xd8", b"\xff\xd9", b"\xff\x01", b"\xff\xdc\0\4\0\x10", b"\xff"]
            ),
        ),
        max_size=3,
    )
)
def test_wherever_segments_are_put_the_picture_has_one_size(places):
    data = PLAIN
    for at, content in places:
        data = inserted(data, content, at=min(at, len(data)))
    try:
        (picture,) = decode(data).frames
    except GuardError:
        return
    assert picture.size in ((64, 32), (16, 16))
