"""People see transparent pictures on white or on black: what only one of the two shows reaches the model."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

from tests.images.files import GREEN, colours, contrast, decode, gif, gif_frame, saved

SIZE = (400, 300)


def drawn(shape: str, ground: int, ink: int) -> np.ndarray:
    image = Image.new("L", SIZE, ground)
    draw = ImageDraw.Draw(image)
    if shape == "words":
        draw.text((20, 100), "WORDS TO READ", fill=ink, font_size=48)
    elif shape == "blurred words":
        draw.text((20, 100), "WORDS TO READ", fill=ink, font_size=48)
        image = image.filter(ImageFilter.GaussianBlur(4))
    elif shape == "bars":
        for left in range(20, 400, 60):
            draw.rectangle((left, 20, left + 20, 280), fill=ink)
    elif shape == "noise":
        image = Image.fromarray(np.random.default_rng(1).integers(ink, ground, SIZE[::-1]).astype(np.uint8))
    return np.asarray(image, dtype=float)


def mirage(on_white: np.ndarray, on_black: np.ndarray) -> Image.Image:
    """A picture that is one thing on white and another one on black, where the first is the brighter one."""
    black = np.minimum(on_white, on_black)
    alpha = np.clip(255 - (on_white - black), 1, 255)
    colour = np.clip(black / alpha * 255, 0, 255)
    return Image.fromarray(np.dstack([colour, colour, colour, alpha]).round().astype(np.uint8))


def alike(picture: Image.Image, wanted: np.ndarray) -> float:
    return float(np.corrcoef(np.asarray(picture.convert("L"), dtype=float).ravel(), wanted.ravel())[0, 1])


NOTHING_ON_WHITE, NOTHING_ON_BLACK = drawn("nothing", 255, 0), drawn("nothing", 10, 0)
MIRAGES = {
    "words on white, bars on black": (drawn("words", 250, 150), drawn("bars", 10, 120)),
    "bars on white, words on black": (drawn("bars", 250, 150), drawn("words", 10, 120)),
    "words on white, nothing on black": (drawn("words", 250, 150), NOTHING_ON_BLACK),
    "nothing on white, words on black": (NOTHING_ON_WHITE, drawn("words", 10, 120)),
    "nothing on white, faint words on black": (NOTHING_ON_WHITE, drawn("words", 10, 45)),
    "nothing on white, blurred words on black": (NOTHING_ON_WHITE, drawn("blurred words", 10, 120)),
    "noise on white, words on black": (drawn("noise", 250, 150), drawn("words", 10, 120)),
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize(("on_white", "on_black"), MIRAGES.values(), ids=MIRAGES.keys())
def test_what_white_shows_and_what_black_shows_both_reach_the_model(on_white, on_black, kind):
    data = saved(mirage(on_white, on_black), kind, **({"lossless": True, "exact": True} if kind == "WEBP" else {}))
    decoded = decode(data, max_images=1)
    white, black = decoded.frames
    for picture, wanted in ((white, on_white), (black, np.minimum(on_white, on_black))):
        if wanted.std():
            assert alike(picture, wanted) > 0.9
    assert (decoded.total_frames, decoded.sampled_frames) == (1, 1)


def written(*lines: tuple[int, int, int]) -> Image.Image:
    image = Image.new("RGBA", SIZE, (0, 0, 0, 0))
    for index, colour in enumerate(lines):
        ImageDraw.Draw(image).text((20, 20 + 80 * index), "WORDS TO READ", fill=(*colour, 255), font_size=40)
    return image


@pytest.mark.parametrize(
    "lines",
    [
        [(255, 255, 255)],
        [(0, 0, 0)],
        [(255, 255, 255), (128, 128, 128), (0, 0, 0)],
        [(200, 200, 200), (255, 255, 100), (40, 40, 40)],
    ],
)
def test_every_line_of_text_on_transparent_pixels_is_readable_in_one_of_the_two(lines):
    pictures = decode(saved(written(*lines), "PNG")).frames
    assert len(pictures) == 2
    for index in range(len(lines)):
        low, high = zip(
            *(picture.convert("L").crop((0, 80 * index, 400, 80 * index + 80)).getextrema() for picture in pictures),
            strict=True,
        )
        assert max(top - bottom for bottom, top in zip(low, high, strict=True)) > 100


def logo(colour: tuple[int, int, int]) -> Image.Image:
    """A disc with a smooth edge on transparent pixels."""
    disc = Image.new("L", (800, 600))
    ImageDraw.Draw(disc).ellipse((200, 100, 600, 500), fill=255)
    image = Image.new("RGBA", SIZE, (*colour, 255))
    image.putalpha(disc.resize(SIZE, Image.Resampling.LANCZOS))
    return image


@pytest.mark.parametrize(
    "colour", [(255, 0, 0), (0, 0, 255), (0, 160, 0), (30, 60, 120), (128, 128, 128), (230, 120, 20), (190, 60, 220)]
)
def test_a_logo_on_transparent_pixels_is_shown_once(colour):
    (picture,) = decode(saved(logo(colour), "PNG")).frames
    assert picture.getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("alpha", [0, 1, 64, 128, 254, 255])
def test_an_even_transparency_is_shown_once(alpha):
    image = Image.effect_noise(SIZE, 60).convert("RGB")
    image.putalpha(alpha)
    assert len(decode(saved(image, "PNG")).frames) == 1


def test_a_photograph_of_middling_tones_with_round_corners_is_shown_once():
    image = Image.effect_noise((100, 75), 15).resize(SIZE).convert("RGB")
    corners = Image.new("L", SIZE)
    ImageDraw.Draw(corners).rounded_rectangle((0, 0, *SIZE), 40, fill=255)
    image.putalpha(corners)
    assert len(decode(saved(image, "PNG")).frames) == 1


def test_every_frame_of_an_animation_is_shown_so_and_counts_once():
    data = gif(
        b"",
        gif_frame(transparent=0, index=lambda pixel: 3 if pixel % 40 < 20 else 0),
        gif_frame(GREEN),
        palette=((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)),
    )
    assert colours(data) == ["WWWW", "WKWK", "GGGG"]
    assert decode(data, max_images=2).sampled_frames == 2


def test_two_renderings_take_no_more_memory_than_one_picture():
    picture = mirage(drawn("words", 250, 150), drawn("bars", 10, 120)).resize((1920, 1200))
    frames = decode(saved(picture, "PNG", compress_level=1)).frames
    assert len(frames) == 2
    assert sum(frame.width * frame.height for frame in frames) <= 16 * 336 * 336


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(4, 60),
)
def test_no_square_that_one_ground_shows_plainly_is_missing_in_all_pictures(grey, inside, outside, side):
    """A square of one opacity on another one: the model sees a third of the contrast of the better ground at least."""
    image = Image.new("RGBA", (120, 90), (grey, grey, grey, outside))
    image.paste((grey, grey, grey, inside), (20, 20, 20 + side, 20 + side))
    pictures = decode(saved(image, "PNG")).frames
    shown = max(map(contrast, pictures))
    on_white = abs((255 - grey) * (inside - outside)) / 255
    on_black = abs(grey * (inside - outside)) / 255
    best = max(on_white, on_black)
    assert best < 26 or shown * 3 + 4 >= best
