"""From the samples of a picture to sRGB, by the first of its profiles that can be used."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageCms

from server.images.profiles import Profile

GENTLE = 8
"""Levels by which neighbouring levels of a gentle profile may lie apart in sRGB."""

EXPECTED = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""ICC's name of the colours that a profile is for to Pillow's."""


class Colours:
    """Turns pictures whose samples are of one mode into RGB: "L", "CMYK", or else RGB. Their alpha is dropped.

    `gentle` says that shrinking a picture before or after makes no visible difference. A steep profile can turn
    what looks like a flat grey into words, but only where it is applied to the samples of the file themselves.
    """

    def __init__(self, profiles: Sequence[Profile], mode: str) -> None:
        self._transform: ImageCms.ImageCmsTransform | None = None
        self._mode = mode if mode in ("L", "CMYK") else "RGB"
        self.gentle = True
        for make in profiles:
            profile = make()
            if not profile or self._use(profile):
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
        return picture if picture.mode == "RGB" else picture.convert("RGB")  # or it would be copied

    def _use(self, profile: bytes) -> bool:
        """Whether the profile can be used. One that is broken, or for other colours, is ignored as viewers do."""
        try:
            embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            expected = EXPECTED.get(embedded.profile.xcolor_space)
            if expected == "RGB" and self._mode == "L":
                self._mode = "RGB"
            if self._mode != expected:
                return False
            self._transform = ImageCms.buildTransform(embedded, ImageCms.createProfile("sRGB"), expected, "RGB")
            shown = np.asarray(ImageCms.applyTransform(_ramps(expected), self._transform), dtype=np.int16)
        except (OSError, ImageCms.PyCMSError):
            self._transform = None
            return False
        self.gentle = bool(np.abs(np.diff(shown, axis=1)).max() <= GENTLE)
        return True


def _ramps(mode: str) -> Image.Image:
    """All levels from left to right: in one channel after the other, and in all at once."""
    channels = len(mode)
    ramps = np.zeros((channels + 1, 256, channels), dtype=np.uint8)
    for channel in range(channels):
        ramps[[channel, channels], :, channel] = np.arange(256)
    return Image.frombytes(mode, (256, channels + 1), ramps.tobytes())
