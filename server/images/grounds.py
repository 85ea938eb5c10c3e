"""Which grounds a picture with transparency is shown on: people see it on white, or on black.

If the opacity of two neighbouring pixels differs, they differ by one amount on white and by another on black. Content
is lost on a ground where they hardly differ although they clearly do on the other one. The ground itself cannot be
lost: along the outline of a logo of a middling colour, both differences are large.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from server.domain.pictures import PictureSizes
from server.images.sizes import halved_size

WHITE, BLACK = 255, 0

SEEN = 24
"""Levels by which neighbouring pixels must differ to be told apart at a glance."""
LOST = 3
"""A difference that is so many times smaller than on the other ground is lost. For opaque greys on transparent pixels,
levels from 192 are lost on white, and levels up to 63 on black."""
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""On white only brightness counts: yellow is practically lost there. On black the strongest channel counts: blue can be
seen, and can be seen better on the white ground, which is always shown."""
PAIRS = 16
"""So many pairs of pixels count as content. A letter has more."""
REDUCTIONS = (1, 4, 16, 64)
"""Factors by which the picture is shrunk to compare pixels. Blurred or dotted content shows in the smaller ones."""
BAND_ROWS = 64


def on_grounds(picture: Image.Image, sizes: PictureSizes) -> list[Image.Image]:
    """A picture with alpha (RGBA) on white, and also on black if one of the two loses content that the other shows."""
    if picture.getchannel("A").getextrema() == (255, 255):
        return [picture.convert("RGB")]
    if not _differ(picture):
        return [_on(WHITE, picture)]
    half = halved_size(*picture.size, sizes)
    if picture.size != half:
        picture = picture.resize(half, Image.Resampling.BILINEAR)
    return [_on(WHITE, picture), _on(BLACK, picture)]


def _on(ground: int, picture: Image.Image) -> Image.Image:
    result = Image.new("RGB", picture.size, (ground, ground, ground))
    result.paste(picture, mask=picture)
    return result


def _differ(picture: Image.Image) -> bool:
    for reduction in REDUCTIONS:
        if reduction > 1 and min(picture.size) < 2 * reduction:
            break
        lost_on_white = lost_on_black = 0
        for white, black in _contrasts(picture if reduction == 1 else picture.reduce(reduction)):
            bright_white, bright_black = np.abs(white @ LUMA), np.abs(black @ LUMA)
            lost_on_white += int(np.count_nonzero((bright_black >= SEEN) & (bright_white * LOST <= bright_black)))
            most_white, most_black = np.abs(white).max(axis=-1), np.abs(black).max(axis=-1)
            lost_on_black += int(np.count_nonzero((most_white >= SEEN) & (most_black * LOST <= most_white)))
            if max(lost_on_white, lost_on_black) >= PAIRS:
                return True
    return False


def _contrasts(picture: Image.Image) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The differences of neighbours with different opacity on white and on black, each [pairs, 3] of float32."""
    for top in range(0, picture.height, BAND_ROWS):
        band = np.asarray(picture.crop((0, top, picture.width, min(top + BAND_ROWS + 1, picture.height))))
        opacity = band[..., 3].astype(np.int16)
        for one, other in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
            # With a smaller difference in opacity, nothing visible on one ground can be lost on the other.
            apart = np.abs(opacity[one] - opacity[other]) >= SEEN * (LOST - 1) // LOST
            if apart.any():
                first, second = (band[side][apart].astype(np.float32) for side in (one, other))
                black = first[:, :3] * (first[:, 3:] / 255) - second[:, :3] * (second[:, 3:] / 255)
                yield black - (first[:, 3:] - second[:, 3:]), black
