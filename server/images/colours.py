"""From the samples of a picture to sRGB, by the first usable one of its profiles."""

import io
import struct
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageCms

from server.images.profiles import HEADER_BYTES, Profile, of_code_points, of_gamma

GENTLE = 8
"""The most sRGB levels between neighbouring levels of a gentle profile."""

FAR = 96
"""An honest profile moves greys by fewer levels than this, and keeps greys spread over at least as many."""

UNCERTAIN_TAGS = frozenset({b"cicp", b"A2B0", b"A2B1", b"A2B2", b"D2B0", b"D2B1", b"D2B2", b"D2B3"})
"""Tags next to a matrix that some viewers obey and others do not."""

EXPECTED = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Maps ICC's name for the colours of a profile to Pillow's."""


class Colours:
    """Turns pictures whose samples are of one mode into RGB: "L", "CMYK", or else RGB. Their alpha is dropped.

    `gentle` says that shrinking a picture before or after makes no visible difference. A steep profile can turn
    what looks like a flat grey into words, but only where it is applied to the samples of the file themselves.
    Where viewers may differ about a profile, `readings` has the picture without it too: it must not hide anything.
    """

    def __init__(self, profiles: Sequence[Profile], mode: str) -> None:
        self._transform: ImageCms.ImageCmsTransform | None = None
        self._mode = mode if mode in ("L", "CMYK") else "RGB"
        self.gentle = True
        self.readings: tuple[Colours, ...] = (self,)
        for make in profiles:
            profile = make()
            embedded = getattr(make, "func", None) not in (of_gamma, of_code_points)
            if not profile or self._use(profile, embedded=embedded):
                return

    @property
    def changes(self) -> bool:
        return self._transform is not None

    def in_srgb(self, picture: Image.Image) -> Image.Image:
        if self._transform is not None:
            source = picture if picture.mode == self._mode else picture.convert(self._mode)
            converted = ImageCms.applyTransform(source, self._transform)
            if converted is not None:
                return converted
        return picture if picture.mode == "RGB" else picture.convert("RGB")  # convert would copy an RGB picture

    def _use(self, profile: bytes, *, embedded: bool) -> bool:
        """Whether the profile can be used. A broken one, or one for other colours, is ignored as in viewers."""
        try:
            opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            expected = EXPECTED.get(opened.profile.xcolor_space)
            if expected == "RGB" and self._mode == "L":
                self._mode = "RGB"
            if self._mode != expected:
                return False
            self._transform = ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), expected, "RGB")
            shown = np.asarray(ImageCms.applyTransform(_ramps(expected), self._transform), dtype=np.int16)
        except (OSError, ValueError, ImageCms.PyCMSError):
            self._transform = None
            return False
        if embedded and _is_doubtful(profile, shown, expected):
            self.readings = (self, Colours((), self._mode))
        self.gentle = bool(np.abs(np.diff(shown, axis=1)).max() <= GENTLE)
        return True


def _is_doubtful(profile: bytes, shown: np.ndarray, mode: str) -> bool:
    """Whether viewers may differ about a profile that shows the ramps as `shown`, or it leaves little of the greys."""
    greys = shown[-1]
    if np.ptp(greys, axis=0).min() < FAR:
        return True
    if mode == "CMYK":  # such a profile has only a table
        return False
    (count,) = struct.unpack_from(">I", profile, HEADER_BYTES)
    index = profile[HEADER_BYTES + 4 : HEADER_BYTES + 4 + 12 * min(count, 1000)]
    tags = {index[at : at + 4] for at in range(0, len(index), 12)}
    return bool(tags & UNCERTAIN_TAGS) or int(np.abs(greys - np.arange(256)[:, None]).max()) > FAR


def _ramps(mode: str) -> Image.Image:
    """All levels from left to right: one ramp for each channel, and one for all channels together."""
    channels = len(mode)
    ramps = np.zeros((channels + 1, 256, channels), dtype=np.uint8)
    for channel in range(channels):
        ramps[[channel, channels], :, channel] = np.arange(256)
    return Image.frombytes(mode, (256, channels + 1), ramps.tobytes())
