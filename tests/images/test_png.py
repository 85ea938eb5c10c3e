"""PNG and APNG: one reader, which shows what browsers show. What Chromium 150 shows stands beside each file."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from server.domain.errors import GuardError, InvalidImage
from tests.images.files import (
    BLACK,
    BLUE,
    END,
    GREEN,
    RED,
    SIGNATURE,
    WHITE,
    apng,
    chunk,
    colours,
    colours_in,
    control,
    decode,
    frame,
    frame_data,
    header,
    pixel,
    png,
    rows,
    saved,
    shown,
    still,
)

GREY = (100, 100, 100)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def linear() -> bytes:
    """sRGB's primaries with a curve that is a straight line: browsers show 100 as 168."""
    profile = bytearray(SRGB)
    for index in range(struct.unpack_from(">I", profile, 128)[0]):
        tag, offset, _ = struct.unpack_from(">4sII", profile, 132 + 12 * index)
        if tag in (b"rTRC", b"gTRC", b"bTRC"):
            profile[offset : offset + 14] = b"curv\0\0\0\0" + struct.pack(">IH", 1, 256)
    return bytes(profile)


def icc(profile: bytes, name: bytes = b"p", method: int = 0, *, broken: bool = False) -> bytes:
    return chunk(b"iCCP", name + bytes([0, method]) + zlib.compress(profile), broken=broken)


def gamma(value: float, *, broken: bool = False) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(value * 100_000)), broken=broken)


def chromaticities(*values: float) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in values)))


LINEAR = linear()
SRGB_CHUNK = chunk(b"sRGB", b"\0")
EXCHANGED = chromaticities(0.3127, 0.329, 0.15, 0.06, 0.3, 0.6, 0.64, 0.33)
AS_WRITTEN, LIGHT = GREY, (168, 168, 168)

COLOURS = {
    "nothing": ([], GREY, AS_WRITTEN),
    "gAMA of sRGB": ([gamma(0.45455)], GREY, AS_WRITTEN),
    "gAMA nearly that of sRGB": ([gamma(0.44)], GREY, AS_WRITTEN),
    "gAMA 1": ([gamma(1)], GREY, LIGHT),
    "gAMA 0.02": ([gamma(0.02)], (243, 243, 243), (84, 84, 84)),
    "gAMA 10": ([gamma(10)], (40, 40, 40), (235, 235, 235)),
    "gAMA 0": ([gamma(0)], GREY, AS_WRITTEN),
    "gAMA too long": ([chunk(b"gAMA", struct.pack(">Ix", 100_000))], GREY, AS_WRITTEN),
    "gAMA twice": ([gamma(1), gamma(0.1)], GREY, LIGHT),
    "gAMA broken, then another": ([gamma(0.1, broken=True), gamma(1)], GREY, LIGHT),
    "sRGB and gAMA": ([SRGB_CHUNK, gamma(1)], GREY, AS_WRITTEN),
    "gAMA and sRGB": ([gamma(1), SRGB_CHUNK], GREY, AS_WRITTEN),
    "sRGB of no known intent, and gAMA": ([chunk(b"sRGB", b"\x09"), gamma(1)], GREY, LIGHT),
    "broken sRGB and gAMA": ([chunk(b"sRGB", b"\0", broken=True), gamma(1)], GREY, LIGHT),
    "iCCP": ([icc(LINEAR)], GREY, LIGHT),
    "iCCP with a wrong checksum": ([icc(LINEAR, broken=True)], GREY, AS_WRITTEN),
    "iCCP and gAMA": ([icc(LINEAR), gamma(0.1)], GREY, LIGHT),
    "iCCP and sRGB": ([icc(LINEAR), SRGB_CHUNK], GREY, LIGHT),
    "sRGB and iCCP": ([SRGB_CHUNK, icc(LINEAR)], GREY, LIGHT),
    "iCCP twice, sRGB first": ([icc(SRGB), icc(LINEAR)], GREY, AS_WRITTEN),
    "iCCP twice, sRGB last": ([icc(LINEAR), icc(SRGB)], GREY, LIGHT),
    "iCCP twice, nonsense first": ([icc(b"nonsense"), icc(LINEAR)], GREY, AS_WRITTEN),
    "nonsense in iCCP, and gAMA": ([icc(b"nonsense"), gamma(1)], GREY, LIGHT),
    "empty iCCP and gAMA": ([chunk(b"iCCP"), gamma(1)], GREY, LIGHT),
    "iCCP without a name": ([icc(LINEAR, b"")], GREY, AS_WRITTEN),
    "iCCP by an unknown method": ([icc(LINEAR, method=1)], GREY, AS_WRITTEN),
    "iCCP with 2 MB behind it": ([icc(LINEAR + bytes(2 * 2**20))], GREY, LIGHT),
    "cHRM alone": ([EXCHANGED], (100, 150, 50), (100, 150, 50)),
    "cHRM and gAMA": ([EXCHANGED, gamma(0.45455)], (100, 150, 50), (46, 151, 100)),
    "cHRM and sRGB": ([EXCHANGED, gamma(1), SRGB_CHUNK], (100, 150, 50), (100, 150, 50)),
    "cICP of sRGB before all": ([icc(LINEAR), gamma(0.1), chunk(b"cICP", b"\1\x0d\0\1")], GREY, AS_WRITTEN),
    "cICP, linear": ([icc(SRGB), chunk(b"cICP", b"\1\x08\0\1")], GREY, LIGHT),
    "cICP of Display P3": ([chunk(b"cICP", b"\x0c\x0d\0\1")], (100, 150, 50), (83, 152, 23)),
    "cICP of BT.709": ([chunk(b"cICP", b"\1\1\0\1")], (100, 150, 50), (91, 144, 39)),
}


@pytest.mark.parametrize(("chunks", "written", "seen"), COLOURS.values(), ids=COLOURS.keys())
def test_colours_are_those_of_browsers(chunks, written, seen):
    found = pixel(shown(png(*chunks, sample=written)), (20, 20))
    assert max(abs(one - other) for one, other in zip(found, seen, strict=True)) <= 2


def test_what_comes_after_the_pixels_says_nothing_about_their_colours():
    late = b"".join((gamma(1), icc(LINEAR), chunk(b"tRNS", b"\0\xff\0\0\0\0"), chunk(b"eXIf", b"MM")))
    assert shown(png()[: -len(END)] + late + END).getcolors() == [(1600, RED)]


def test_a_steep_profile_is_applied_before_the_picture_is_shrunk():
    """Dots of two levels that become words only through the curve: shrunk before, they would be a flat grey."""
    dots = np.full((2000, 2000), 240, dtype=np.uint8)
    dots[::2, ::2] = 255
    dots[:, 1000:] = 244
    data = saved(Image.fromarray(dots), "PNG")
    at = data.index(b"IDAT") - 4
    picture = shown(data[:at] + gamma(0.005) + data[at:])
    assert picture.width < 2000
    assert pixel(picture, (200, 500))[0] - pixel(picture, (picture.width - 200, 500))[0] > 30


def indexed(*chunks: bytes, sample: int = 1) -> bytes:
    return SIGNATURE + header(colour_type=3) + b"".join(chunks) + chunk(b"IDAT", rows([sample])) + END


TWO = chunk(b"PLTE", bytes([*RED, *GREEN]))
OPAQUE, CLEAR = chunk(b"tRNS", b"\xff\xff"), chunk(b"tRNS", b"\0\0")

PALETTES = {
    "opaque": ([TWO, OPAQUE], GREEN),
    "clear": ([TWO, CLEAR], WHITE),
    "opaque, then clear": ([TWO, OPAQUE, CLEAR], GREEN),
    "clear, then opaque": ([TWO, CLEAR, OPAQUE], WHITE),
    "clear with a wrong checksum, then opaque": ([TWO, chunk(b"tRNS", b"\0\0", broken=True), OPAQUE], GREEN),
    "transparency before the palette": ([CLEAR, TWO], GREEN),
    "more transparencies than colours": ([TWO, chunk(b"tRNS", bytes(5))], WHITE),
    "two palettes": ([TWO, chunk(b"PLTE", bytes([*BLUE, *BLUE]))], GREEN),
}


@pytest.mark.parametrize(("chunks", "seen"), PALETTES.values(), ids=PALETTES.keys())
def test_of_chunks_that_may_stand_once_the_first_one_counts(chunks, seen):
    assert shown(indexed(*chunks)).getpixel((20, 20)) == seen


TEXT = zlib.compress(b"A" * 3 * 2**20)
IRRELEVANT = {
    "text of 3 MB": chunk(b"zTXt", b"a\0\0" + TEXT),
    "international text of 3 MB": chunk(b"iTXt", b"a\0\1\0\0\0" + TEXT),
    "plain text of 2 MB": chunk(b"tEXt", b"a\0" + bytes(2 * 2**20)),
    "wrong checksum of a text": chunk(b"tEXt", b"a\0b", broken=True),
    "wrong checksum of a transparency": chunk(b"tRNS", b"\0\xff\0\0\0\0", broken=True),
    "wrong checksum of an animation": control(2)[:-1] + b"x",
    "unknown": chunk(b"prVt", b"x" * 100),
    "of no letters": chunk(b"a\0bc", b"x"),
    "background, time, resolution": chunk(b"bKGD", bytes(6)) + chunk(b"tIME", bytes(7)) + chunk(b"pHYs", bytes(9)),
    "frames without an animation": frame(0) + frame_data(1, BLUE),
}


@pytest.mark.parametrize("chunks", IRRELEVANT.values(), ids=IRRELEVANT.keys())
def test_what_is_no_part_of_the_picture_does_not_decide(chunks):
    assert shown(png(chunks)).getcolors() == [(1600, RED)]
    assert shown(png()[: -len(END)] + chunks + END).getcolors() == [(1600, RED)]


@pytest.mark.parametrize("end", [b"", END[:-4], b"\xff\xff\xff\xfftEXt"])
def test_a_file_that_is_cut_behind_its_pixels_is_whole(end):
    assert shown(png()[: -len(END)] + end).getcolors() == [(1600, RED)]


SMALL = header(8, 8)
REFUSED = {
    "two headers": SIGNATURE + SMALL + png()[8:],
    "two headers, the large one first": SIGNATURE + header() + SMALL + still() + END,
    "a header behind the pixels": png()[: -len(END)] + SMALL + END,
    "a private chunk that reads like a header": SIGNATURE + chunk(b"prVt", SMALL[8:21]) + png()[8:],
    "a text that reads like a header": SIGNATURE + chunk(b"tEXt", SMALL[8:21]) + png()[8:],
    "a header of 14 bytes": png(first=chunk(b"IHDR", header()[8:21] + b"\0")),
    "a header with a wrong checksum": png(first=chunk(b"IHDR", header()[8:21], broken=True)),
    "an impossible depth": png(first=header(bit_depth=4)),
    "a palette with a wrong checksum": indexed(chunk(b"PLTE", bytes(6), broken=True)),
    "a palette of 300 colours": indexed(chunk(b"PLTE", bytes(900))),
    "no palette": indexed(),
    "a palette behind the pixels": indexed()[: -len(END)] + TWO + END,
    "an index without a colour": indexed(TWO, sample=7),
    "an unknown critical chunk": png(chunk(b"ABCD")),
    "a text longer than the file": SIGNATURE + header() + struct.pack(">I", 99_999) + b"tEXt" + still() + END,
    "pixels in two places": SIGNATURE
    + header()
    + chunk(b"IDAT", rows(RED)[:20])
    + chunk(b"tEXt", b"a\0b")
    + chunk(b"IDAT", rows(RED)[20:])
    + END,
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_files_that_two_readers_could_read_in_two_ways_are_refused(data):
    with pytest.raises(InvalidImage):
        decode(data)


def test_all_16_bits_of_a_transparent_colour_count():
    """Beside a transparent colour, one that differs from it in the lower byte alone."""
    for colour_type, sample, other in ((0, b"\x12\x34", b"\x12\x35"), (2, b"\x12\x34\0\0\0\0", b"\x12\x35\0\0\0\0")):
        row = b"\0" + sample * 20 + other * 20
        transparent = chunk(b"tRNS", sample)
        pixels = chunk(b"IDAT", zlib.compress(row * 40))
        first, *_ = decode(SIGNATURE + header(40, 40, 16, colour_type) + transparent + pixels + END).frames
        assert first.getpixel((5, 5)) == WHITE
        assert max(pixel(first, (35, 5))) < 32


# --- Animations ------------------------------------------------------------------------------------------

QUARTER = (20, 20)
FIRST = frame(0) + still()
SECOND = frame(1, QUARTER) + frame_data(2, GREEN, QUARTER)
THIRD = frame(3, QUARTER, (20, 20)) + frame_data(4, BLUE, QUARTER)

ANIMATIONS = {
    "three frames": (apng(control(3), FIRST, SECOND, THIRD), ["RRRR", "GRRR", "GRRB"]),
    "a second number of frames": (apng(control(2), control(9), FIRST, SECOND), ["RRRR", "GRRR"]),
    "more frames than declared": (apng(control(2), FIRST, SECOND, THIRD), ["RRRR", "GRRR"]),
    "one frame declared": (apng(control(1), FIRST, SECOND), ["RRRR"]),
    "no frame declared": (apng(control(0), FIRST, SECOND), ["RRRR"]),
    "declared behind the pixels": (apng(FIRST, control(2), SECOND), ["RRRR"]),
    "declared in too many bytes": (apng(chunk(b"acTL", struct.pack(">IIx", 2, 0)), FIRST, SECOND), ["RRRR"]),
    "cleared": (
        apng(control(3), FIRST, frame(1, QUARTER, disposal=1) + frame_data(2, GREEN, QUARTER), THIRD),
        ["RRRR", "GRRR", "WRRB"],
    ),
    "undone": (
        apng(control(3), FIRST, frame(1, QUARTER, disposal=2) + frame_data(2, GREEN, QUARTER), THIRD),
        ["RRRR", "GRRR", "RRRB"],
    ),
    "the first one undone": (apng(control(2), frame(0, disposal=2) + still(), SECOND), ["RRRR", "GWWW"]),
    "pixels of a frame in two chunks": (
        apng(
            control(2),
            FIRST,
            frame(1),
            chunk(b"fdAT", struct.pack(">I", 2) + rows(GREEN)[:9]),
            chunk(b"fdAT", struct.pack(">I", 3) + rows(GREEN)[9:]),
        ),
        ["RRRR", "GGGG"],
    ),
}


@pytest.mark.parametrize(("data", "seen"), ANIMATIONS.values(), ids=ANIMATIONS.keys())
def test_animations_are_composed_as_in_browsers(data, seen):
    assert colours(data, animation_frames=9) == seen


def test_a_still_picture_beside_the_animation_is_shown_too():
    """Browsers show the frames, viewers that know no animations show the other picture; it is no frame."""
    data = apng(control(2), still(), frame(0) + frame_data(1, GREEN), frame(2) + frame_data(3, BLUE))
    assert colours(data) == ["GGGG", "BBBB", "RRRR"]
    assert (decode(data).total_frames, decode(data).sampled_frames) == (2, 2)


WRONG_ANIMATIONS = {
    "fewer frames than declared": apng(control(5), FIRST, SECOND),
    "a number left out": apng(control(2), FIRST, frame(5, QUARTER) + frame_data(6, GREEN, QUARTER)),
    "a frame outside": apng(control(2), FIRST, frame(1, QUARTER, (30, 30)) + frame_data(2, GREEN, QUARTER)),
    "a frame without width": apng(control(2), FIRST, frame(1, (0, 20)) + frame_data(2, GREEN, QUARTER)),
    "a first frame of another size": apng(control(2), frame(0, QUARTER) + still(), SECOND),
    "an unknown disposal": apng(control(2), FIRST, frame(1, disposal=3) + frame_data(2, GREEN)),
    "an unknown blending": apng(control(2), FIRST, frame(1, blend=2) + frame_data(2, GREEN)),
    "a frame without pixels": apng(control(2), FIRST, frame(1), frame(2) + frame_data(3, BLUE)),
    "a frame of fewer pixels": apng(control(2), FIRST, frame(1) + chunk(b"fdAT", struct.pack(">I", 2) + b"x")),
    "pixels of no frame": apng(control(1), still(), frame_data(0, GREEN)),
}


@pytest.mark.parametrize("data", WRONG_ANIMATIONS.values(), ids=WRONG_ANIMATIONS.keys())
def test_animations_that_end_early_in_some_viewers_are_refused(data):
    with pytest.raises(InvalidImage):
        decode(data, animation_frames=9)


NAMES = [b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"gAMA", b"acTL", b"fcTL", b"fdAT", b"tEXt", b"IEND", b"prVt"]
CONTENTS = [header()[8:21], SMALL[8:21], rows(RED), bytes(6), b"", control(2)[8:16], FIRST[8:34], frame(1)[8:34]]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(CONTENTS), st.booleans()), max_size=6))
def test_whatever_the_chunks_the_picture_has_the_size_of_the_one_header(extra):
    """Chunks at any place: the file is refused, or shows 40 x 40 pixels."""
    middle = b"".join(chunk(kind, content, broken=broken) for kind, content, broken in extra)
    for data in (SIGNATURE + header() + middle + still() + END, SIGNATURE + middle + header() + still() + END):
        try:
            pictures = decode(data).frames
        except GuardError:
            continue
        assert {picture.size for picture in pictures} == {(40, 40)}
        assert {colour for picture in pictures for colour in colours_in(picture)} <= {RED, WHITE, BLACK}
