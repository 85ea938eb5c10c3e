"""A colour profile that viewers may read in different ways hides nothing: the picture is shown without it as well."""

import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.images.files import decode, saved

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def with_tags(profile: bytes, **changes: bytes) -> bytes:
    """`profile` with tags replaced or added."""
    (count,) = struct.unpack_from(">I", profile, 128)
    tags = {}
    for at in range(132, 132 + 12 * count, 12):
        name, offset, size = struct.unpack_from(">4sII", profile, at)
        tags[name] = profile[offset : offset + size]
    tags |= {name.encode(): content for name, content in changes.items()}
    index, content, start = b"", b"", 132 + 12 * len(tags)
    for name, tag in tags.items():
        index += struct.pack(">4sII", name, start + len(content), len(tag))
        content += tag + bytes(-len(tag) % 4)
    head = struct.pack(">I", start + len(content)) + profile[4:128]
    return head + struct.pack(">I", len(tags)) + index + content


def curve(*levels: int) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(f">I{len(levels)}H", len(levels), *levels)


def curves(tag: bytes) -> dict[str, bytes]:
    return {"rTRC": tag, "gTRC": tag, "bTRC": tag}


NOTHING = b"XYZ \0\0\0\0" + bytes(12)
HIDING = {
    "a curve that is full everywhere": curves(curve(65535, 65535)),
    "a curve that is empty everywhere": curves(curve(0, 0)),
    "a curve that turns everything round": curves(curve(65535, 0)),
    "a parametric curve that overflows": curves(
        b"para\0\0\0\0" + struct.pack(">HHiii", 1, 0, 2 << 16, -1 << 16, 1 << 16)
    ),
    "no primaries": {"rXYZ": NOTHING, "gXYZ": NOTHING, "bXYZ": NOTHING},
    "code points beside curves": {"cicp": b"cicp\0\0\0\0" + bytes([1, 13, 0, 1])},
    "a table beside curves": {"A2B0": b"mft1\0\0\0\0" + bytes(40)},
}


def picture() -> Image.Image:
    return Image.fromarray(np.tile(np.arange(0, 256, 4, dtype=np.uint8)[:, None, None], (1, 64, 3)))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("tags", HIDING.values(), ids=HIDING)
def test_the_picture_is_shown_without_a_doubtful_profile_too(kind, tags):
    options = {"lossless": True} if kind == "WEBP" else {}
    found = decode(saved(picture(), kind, icc_profile=with_tags(SRGB, **tags), **options))
    differences = [np.abs(np.asarray(frame, dtype=int) - np.asarray(picture())).mean() for frame in found.frames]
    assert min(differences) < 3
    assert found.sampled_frames == 1  # the second rendering is not the caller's


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_an_honest_profile_is_applied_and_shown_once(kind):
    for profile in (SRGB, with_tags(SRGB, **curves(curve(round(1.8 * 256))))):
        assert len(decode(saved(picture(), kind, icc_profile=profile)).frames) == 1


def test_a_profile_whose_header_is_no_text_is_ignored():
    broken = SRGB[:16] + b"\xff\xfe\xfd\xfc" + SRGB[20:]
    (shown,) = decode(saved(picture(), "PNG", icc_profile=broken)).frames
    assert np.array_equal(np.asarray(shown), np.asarray(picture()))
