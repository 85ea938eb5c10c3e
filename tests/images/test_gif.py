"""GIF: one reader, which shows what browsers show. The expectations are what Chromium 150 shows of each file."""

import pytest

from server.domain.errors import ImageTooLarge, InvalidImage
from tests.images.files import BLUE, FOREVER, GREEN, YELLOW, colours, decode, gif, gif_frame

QUARTER = (20, 20)
WHOLE = gif_frame()
CORNER = gif_frame(BLUE, QUARTER, (20, 20))

FILES = {
    "a later frame that reaches over the edge": (gif(WHOLE, gif_frame(GREEN, at=(20, 20))), ["RRRR", "RRRG"]),
    "a dot far outside": (gif(WHOLE, gif_frame(GREEN, (1, 1), (3999, 0))), ["RRRR", "RRRR"]),
    "a first frame larger than the screen": (gif(WHOLE, CORNER, screen=(20, 20)), ["RRRR", "RRRB"]),
    "a first frame beside the screen": (
        gif(gif_frame(size=QUARTER, at=(20, 20)), gif_frame(GREEN), screen=(20, 20)),
        ["WWWR", "GGGG"],
    ),
    "a first frame smaller than the screen": (gif(gif_frame(size=QUARTER), CORNER), ["RWWW", "RWWB"]),
    "a screen without size": (gif(WHOLE, CORNER, screen=(0, 0)), ["RRRR", "RRRB"]),
    "a frame without size": (gif(WHOLE, gif_frame(GREEN, (0, 0)), CORNER), ["RRRR", "RRRR", "RRRB"]),
    "kept": (gif(WHOLE, gif_frame(GREEN, QUARTER, disposal=1), CORNER), ["RRRR", "GRRR", "GRRB"]),
    "cleared": (gif(WHOLE, gif_frame(GREEN, QUARTER, disposal=2), CORNER), ["RRRR", "GRRR", "WRRB"]),
    "undone": (gif(WHOLE, gif_frame(GREEN, QUARTER, disposal=3), CORNER), ["RRRR", "GRRR", "RRRB"]),
    "undone as early programs wrote it": (
        gif(WHOLE, gif_frame(GREEN, QUARTER, disposal=4), CORNER),
        ["RRRR", "GRRR", "RRRB"],
    ),
    "an unknown disposal": (gif(WHOLE, gif_frame(GREEN, QUARTER, disposal=7), CORNER), ["RRRR", "GRRR", "GRRB"]),
    "the first one cleared": (gif(gif_frame(disposal=2), CORNER), ["RRRR", "WWWB"]),
    "the first one undone": (gif(gif_frame(disposal=3), CORNER), ["RRRR", "WWWB"]),
    "two controls, the last one counts": (gif(b"\x21\xf9\x04\x01\x0a\0\0\0", WHOLE), ["RRRR"]),
    "a comment between control and image": (
        gif(gif_frame(extension=b"\x21\xf9\x04\x01\x0a\0\0\0\x21\xfe\x01a\0")),
        ["WWWW"],
    ),
    "other bytes between two frames": (gif(WHOLE, b"xyz", CORNER), ["RRRR"]),
    "frames behind the end": (gif(WHOLE) + CORNER, ["RRRR"]),
    "no end": (gif(WHOLE, CORNER, trailer=b""), ["RRRR", "RRRB"]),
    "more pixels than the frame has": (gif(gif_frame(coded=(40, 60))), ["RRRR"]),
    "no colours": (gif(gif_frame(GREEN), palette=()), ["KKKK"]),
    "an index beyond the colours": (gif(gif_frame(YELLOW), palette=((255, 0, 0), (0, 255, 0))), ["KKKK"]),
    "transparent pixels over others": (
        gif(WHOLE, gif_frame(transparent=0, index=lambda pixel: 0 if pixel < 800 else 3)),
        ["RRRR", "RRYY"],
    ),
}


@pytest.mark.parametrize(("data", "seen"), FILES.values(), ids=FILES.keys())
def test_frames_are_composed_as_in_browsers(data, seen):
    assert colours(data, animation_frames=9) == seen
    assert decode(data).total_frames == len(seen)


REFUSED = {
    "an empty control, then what looks like the end": gif(b"\x21\xf9\0\x3b" + bytes(60) + b"\0", WHOLE),
    "an empty control": gif(b"\x21\xf9\0", WHOLE),
    "a control of 3 bytes": gif(gif_frame(extension=b"\x21\xf9\x03\1\0\0\0")),
    "a control of 5 bytes": gif(gif_frame(extension=b"\x21\xf9\x05\1\0\0\0\0\0")),
    "a control of two blocks": gif(gif_frame(extension=b"\x21\xf9\x04\1\0\0\1\x04\1\0\0\0\0")),
    "other bytes before the first frame": gif(b"abc", WHOLE),
    "zeros before the first frame": gif(b"\0\0", WHOLE),
    "fewer pixels than the frame has": gif(gif_frame(coded=(40, 20))),
    "the second frame of fewer pixels": gif(WHOLE, gif_frame(coded=(40, 20))),
    "cut in the second frame": gif(WHOLE, CORNER)[:-40],
    "no frame": gif(),
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_files_that_are_not_whole_or_hide_frames_are_refused(data):
    with pytest.raises(InvalidImage):
        decode(data)


def test_a_frame_outside_the_screen_may_not_cost_more_than_a_picture():
    huge = gif_frame(GREEN, (60_000, 60_000), (50, 50), coded=(1, 1))
    with pytest.raises(ImageTooLarge, match="pixels"):
        decode(gif(WHOLE, huge))


@pytest.mark.parametrize(
    ("extension", "ends"),
    [
        (b"", True),
        (FOREVER, False),
        (FOREVER.replace(b"NETSCAPE2.0", b"ANIMEXTS1.0"), False),
        (FOREVER[:-3] + b"\x02\0\0", True),
        (FOREVER.replace(b"NETSCAPE2.0", b"SOMETHINGS0"), True),
    ],
)
def test_where_an_animation_ends_its_last_frame_is_the_one_that_stays(extension, ends):
    data = gif(extension, gif_frame(delay=1000), gif_frame(GREEN), gif_frame(BLUE, delay=2))
    assert colours(data, animation_frames=1) == (["BBBB"] if ends else ["RRRR"])
