"""From image URLs to pictures that the model can be shown, within bounds on memory and time.

Nothing is decoded before the file's own structure says that it is small enough (`survey`), at most
`WORKING_BYTES` are used by all decoding at once, and what leaves is hardly larger than the canvas that Llama 4
resizes into. What leaves is also what a person sees: upright, in sRGB, on a ground that hides nothing.
"""

import asyncio
import binascii
import contextlib
import io
import logging
import math
import re
import struct
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import PIL.WebPImagePlugin  # noqa: F401  Pillow loads all its plugins when one of `formats` is not loaded yet.
from PIL import Image, ImageCms, ImageFile, ImageFilter

from server.conversation import ImagePart
from server.errors import (
    DeadlineExceeded,
    GuardError,
    ImageTooLarge,
    InvalidImage,
    InvalidRequest,
    RemoteImagesDisabled,
    TooManyImages,
)
from server.fetch import ImageFetcher

TILE = 336
"""Side of one of the model's tiles, pixels."""

CANVASES = tuple((TILE * columns, TILE * rows) for columns in range(1, 17) for rows in range(1, 16 // columns + 1))
"""Width and height of everything that Llama 4's processor resizes into: at most 16 tiles in any rectangle."""

UNSHRUNK_PIXELS = 1920 * 1200
"""A picture of so many pixels leaves as it is: the engine's own resize to the canvas takes a third of Pillow's time."""

MIN_SIDE = 4
"""Sides of 1 and 3 pixels are what image processors mistake for colour channels (CVE-2026-22773)."""

WORKING_BYTES = 300 * 2**20
"""Memory of all decoding at once. One image that needs more is refused."""

MAX_SEGMENTS = 100_000
"""Chunks, segments or blocks of one file. Pillow makes Python objects of them: 20 MB of empty ones fill a gigabyte."""

MAX_SCAN_PIXELS = 1_000_000_000
"""Pixels times scans of a progressive JPEG: a scan of ten bytes costs a pass over the whole picture."""

MAX_ANIMATION_FRAMES = 1000
MAX_ANIMATION_PIXELS = 100_000_000
"""Frames, and pixels of these frames, that are composed to reach the sampled ones; about two seconds of work."""

MAX_FETCHED = 8
"""Fetched files that may wait in memory to be decoded, over all requests."""

PILLOW_BLOCK_BYTES = 64 * 2**20
"""Pixels are allocated in blocks of this size. The C library gives blocks above 32 MiB back to the system; it keeps
smaller ones, and small pictures between them pin hundreds of megabytes."""

BAND_ROWS = 64
"""Rows of the result that are resized at once."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to what undoes it."""

WHITE, BLACK, GREY = 255, 0, 128

NOT_BASE64 = "The image's base64 is not valid."
NOT_AN_IMAGE = "The image is not a complete JPEG, PNG, WebP or GIF file."


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Bounds on the images of one request."""

    max_images: int = 5
    """Pictures that the model is shown; each sampled frame of an animation is one."""
    max_bytes: int = 20 * 2**20
    """Encoded bytes of one image."""
    max_pixels: int = 50_000_000
    """Pixels of one frame, as the header declares them."""
    animation_frames: int = 3
    """Frames sampled from an animated image."""
    timeout_s: float = 10.0
    """Seconds for fetching and decoding all images of one request."""
    remote: bool = False
    """Whether http(s) URLs are fetched."""


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """`frames` are RGB, upright, opaque and have a `shown_size`. `total_frames` counts those of the file."""

    frames: tuple[Image.Image, ...]
    total_frames: int
    format: str


@dataclass(frozen=True, slots=True)
class Survey:
    """What a file's structure says before anything of it is decoded.

    `width` and `height` in pixels, `bytes_per_pixel` the working memory that Pillow needs to decode it (measured),
    `bit_depth` of a sample.
    """

    format: str
    width: int
    height: int
    bytes_per_pixel: float
    bit_depth: int = 8


class ImageDecoder:
    """Decodes the images of requests on `workers` threads. One for the process: its bounds are the process's."""

    def __init__(self, limits: ImageLimits, workers: int = 2, fetcher: ImageFetcher | None = None) -> None:
        self._limits = limits
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="image-decoder")
        self._memory = WorkingMemory(WORKING_BYTES)
        self._fetcher = fetcher or ImageFetcher(limits.max_bytes, limits.timeout_s)
        self._fetched = asyncio.Semaphore(MAX_FETCHED)
        Image.core.set_block_size(PILLOW_BLOCK_BYTES)  # type: ignore[attr-defined]
        # Pillow logs names out of the file when someone turns debugging on.
        logging.getLogger("PIL").setLevel(logging.WARNING)
        # It also warns, once for each odd tag: 64 kB of EXIF write a megabyte of warnings.
        warnings.filterwarnings("ignore", module=r"PIL\.")

    async def decode(self, images: Sequence[ImagePart]) -> list[DecodedImage]:
        """The images in the same order.

        Raises TooManyImages, ImageTooLarge (bytes, pixels, memory), InvalidImage, RemoteImagesDisabled, and
        DeadlineExceeded when they are not there in time.
        """
        limits = self._limits
        if len(images) > limits.max_images:
            raise TooManyImages(
                f"A request may hold at most {limits.max_images} images.", param=images[limits.max_images].param
            )
        for image in images:
            self._check_scheme(image)
        deadline = time.monotonic() + limits.timeout_s
        tasks = [asyncio.ensure_future(self._decode_one(image, deadline)) for image in images]
        try:
            async with asyncio.timeout(limits.timeout_s):
                decoded = await asyncio.gather(*tasks)
        except TimeoutError:
            raise too_slow() from None
        finally:
            # A decode that waits for a thread never starts; one that runs ends by itself soon after the deadline. None
            # is kept: errors hold this frame, and it would hold them.
            while tasks:
                tasks.pop().cancel()
        shown = 0
        for image, result in zip(images, decoded, strict=True):
            shown += len(result.frames)
            if shown > limits.max_images:
                raise TooManyImages(
                    f"A request may hold at most {limits.max_images} images. An animated image counts as the "
                    f"frames that are sampled from it, up to {limits.animation_frames}.",
                    param=image.param,
                )
        return decoded

    def close(self) -> None:
        """Forget queued decodes and let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _check_scheme(self, image: ImagePart) -> None:
        match scheme_of(image.url):
            case "data":
                return
            case "http" | "https":
                if not self._limits.remote:
                    raise RemoteImagesDisabled(
                        "This server does not fetch images. Send the file itself as a data: URL "
                        "(data:image/png;base64,...), or have the operator set GUARD_IMAGE_REMOTE.",
                        param=image.param,
                    )
            case _:
                raise InvalidImage("An image is a data: URL in base64, or an http(s) URL.", param=image.param)

    async def _decode_one(self, image: ImagePart, deadline: float) -> DecodedImage:
        loop = asyncio.get_running_loop()
        try:
            if scheme_of(image.url) == "data":
                return await loop.run_in_executor(self._pool, self._decode_data_url, image.url, deadline)
            async with self._fetched:
                data = await self._fetcher.fetch(image.url, image.param)
                return await loop.run_in_executor(self._pool, self._decode_file, data, deadline)
        except InvalidRequest as error:
            error.param = image.param
            raise

    def _decode_data_url(self, url: str, deadline: float) -> DecodedImage:
        return self._decode_file(read_data_url(url, self._limits.max_bytes), deadline)

    def _decode_file(self, data: bytes, deadline: float) -> DecodedImage:
        if len(data) > self._limits.max_bytes:
            raise too_many_bytes(self._limits.max_bytes)
        try:
            found = survey(data)
            self._check_size(found)
            with self._memory.reserved(math.ceil(found.width * found.height * found.bytes_per_pixel), deadline):
                return self._decode_surveyed(data, found, deadline)
        except GuardError:
            raise
        except (Image.DecompressionBombError, MemoryError):
            raise ImageTooLarge("The image needs too much memory to decode.") from None
        except Exception:
            # A decoder fed with hostile bytes may raise anything, and says the bytes and its addresses in it.
            raise InvalidImage(NOT_AN_IMAGE) from None

    def _check_size(self, found: Survey) -> None:
        pixels = found.width * found.height
        if not pixels:
            raise InvalidImage("The image has no pixels.")
        possible = min(self._limits.max_pixels, int(WORKING_BYTES / found.bytes_per_pixel))
        if pixels > possible:
            raise ImageTooLarge(f"An image of this kind may have at most {possible} pixels.")

    def _decode_surveyed(self, data: bytes, found: Survey, deadline: float) -> DecodedImage:
        size = shown_size(found.width, found.height)
        image = open_surveyed(data, found, size)
        total: int = getattr(image, "n_frames", 1)
        # The further pictures of an MPO file are other views of the first one, or data about it.
        animated = total > 1 and image.format != "MPO"
        wanted = sampled(total, self._limits.animation_frames, found.width * found.height) if animated else [0]
        frames: list[Image.Image] = []
        for index in wanted:
            if found.format == "PNG" and frames:
                # Once a frame was loaded, Pillow can neither undo it when the file says so, nor go back.
                image = open_surveyed(data, found, size)
            for step in range(image.tell() + 1, index + 1):
                if time.monotonic() > deadline:
                    raise too_slow()
                image.seek(step)
            image.load()
            frame = as_seen(image, size)
            # The next frame is painted over this one.
            frames.append(frame.copy() if frame is image and animated else frame)
        return DecodedImage(tuple(frames), total, image.format or found.format)


class WorkingMemory:
    """Bytes that decoding threads share. They are served in the order in which they ask."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._freed = threading.Condition()
        self._turn = threading.Lock()

    @contextlib.contextmanager
    def reserved(self, size: int, deadline: float) -> Iterator[None]:
        """Hold `size` bytes. Raises DeadlineExceeded when they do not come free before `deadline` (monotonic)."""
        # Whoever waits keeps the turn, so that small images cannot overtake a large one for ever.
        with self._turn, self._freed:
            if not self._freed.wait_for(lambda: self._free >= size, max(0.0, deadline - time.monotonic())):
                raise too_slow()
            self._free -= size
        try:
            yield
        finally:
            with self._freed:
                self._free += size
                self._freed.notify_all()


def too_slow() -> DeadlineExceeded:
    # What one file can cost is bounded before it is decoded: what is late is so because the server is busy.
    return DeadlineExceeded("The images of this request could not be decoded in time.")


def too_many_bytes(limit: int) -> ImageTooLarge:
    return ImageTooLarge(f"An image may have at most {limit} bytes.")


# --- The URL ---------------------------------------------------------------------------------------------


def scheme_of(url: str) -> str:
    return url[:8].partition(":")[0].lower()


DATA_URL = re.compile(r"data:[^,]{0,256}?;[ ]*base64,", re.IGNORECASE)
WHITESPACE = b" \t\r\n\f"
SLICE = 2**20
"""Characters of base64 that are decoded at once: it keeps other threads waiting, and needs their number in memory."""


def read_data_url(url: str, max_bytes: int) -> bytes:
    """The bytes of a data: URL, hardly more than `max_bytes` of them. Its media type is not read: the bytes decide.

    Whitespace and missing padding are tolerated, as in browsers. Raises InvalidImage and ImageTooLarge.
    """
    header = DATA_URL.match(url)
    if header is None:
        raise InvalidImage("A data: URL of an image must be in base64: data:image/png;base64,...")
    # A sixteenth is room for line breaks; the exact bound is checked on the bytes.
    if (len(url) - header.end()) * 3 // 4 > max_bytes + max_bytes // 16 + 2:
        raise too_many_bytes(max_bytes)
    pieces: list[bytes] = []
    rest = b""
    try:
        for start in range(header.end(), len(url), SLICE):
            rest += url[start : start + SLICE].encode("ascii").translate(None, WHITESPACE)
            whole = len(rest) // 4 * 4
            pieces.append(binascii.a2b_base64(rest[:whole], strict_mode=True))
            rest = rest[whole:]
        pieces.append(binascii.a2b_base64(rest + b"=" * (-len(rest) % 4), strict_mode=True))
    except ValueError:
        raise InvalidImage(NOT_BASE64) from None
    pieces = [piece for piece in pieces if piece]
    if any(len(piece) % 3 for piece in pieces[:-1]):  # There was padding before the end.
        raise InvalidImage(NOT_BASE64)
    return b"".join(pieces)


# --- The file's structure --------------------------------------------------------------------------------


def survey(data: bytes) -> Survey:
    """Size and cost of a picture out of its file's structure. Raises InvalidImage for any other file."""
    try:
        if data.startswith(b"\xff\xd8\xff"):
            return survey_jpeg(data)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return survey_png(data)
        if data.startswith((b"GIF87a", b"GIF89a")):
            return survey_gif(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return survey_webp(data)
    except (IndexError, struct.error):
        pass
    raise InvalidImage(NOT_AN_IMAGE)


JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]", re.DOTALL)
"""A marker that starts a segment or ends the picture: neither fill, nor stuffing in a scan, nor a restart."""

START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9


def survey_jpeg(data: bytes) -> Survey:
    """The first picture of a JPEG file; an MPO or motion photo goes on after it."""
    position, segments, scans = 2, 0, 0
    width = height = components = 0
    samples, progressive = 0.0, False
    while marker := JPEG_MARKER.search(data, position):
        code = data[marker.start() + 1]
        if code == END_OF_IMAGE:
            break
        (length,) = struct.unpack_from(">H", data, marker.end())
        if code in START_OF_FRAME:
            if components:
                raise InvalidImage(NOT_AN_IMAGE)
            height, width, components = struct.unpack_from(">HHB", data, marker.end() + 3)
            factors = [data[marker.end() + 9 + 3 * index] for index in range(components)]
            sizes = [(factor >> 4) * (factor & 15) for factor in factors]
            samples = sum(sizes) / max(1, max(sizes, default=0))
            progressive = code in PROGRESSIVE
        scans += code == START_OF_SCAN
        segments += 1
        position = marker.end() + length
        # Pillow looks at the bytes between two segments one by one, as long as no scan has begun.
        if segments > MAX_SEGMENTS or (scans > 1 and scans * width * height > MAX_SCAN_PIXELS):
            raise ImageTooLarge("The image takes too long to decode.")
    reduction = draft_reduction(width, height) if width and height else 1
    # All coefficients of a progressive picture are held until its last scan, whatever size it is decoded to.
    coefficients = 2 * samples if progressive else 0.0
    return Survey("JPEG", width, height, 4 / reduction**2 + coefficients)


def survey_png(data: bytes) -> Survey:
    width, height, bit_depth = struct.unpack_from(">IIB", data, 16)
    position, chunks, animated = 8, 0, False
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        animated = animated or kind == b"acTL"
        chunks += 1
        position += length + 12
        if chunks > MAX_SEGMENTS:
            raise ImageTooLarge("The image takes too long to decode.")
    return Survey("PNG", width, height, 20 if animated else 4, bit_depth)


def survey_gif(data: bytes) -> Survey:
    """A frame may be larger than the screen that the header declares; Pillow then enlarges the picture."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position, blocks, frames = 13 + colour_table_bytes(flags), 0, 0
    with contextlib.suppress(IndexError, struct.error):  # A file that ends without its trailer.
        while data[position] != 0x3B:
            blocks += 1
            if data[position] == 0x2C:
                left, top, frame_width, frame_height, flags = struct.unpack_from("<HHHHB", data, position + 1)
                width, height = max(width, left + frame_width), max(height, top + frame_height)
                frames += 1
                position += 11 + colour_table_bytes(flags)
            elif data[position] == 0x21:
                position += 2
            else:  # Bytes between blocks are skipped one by one, by Pillow too.
                position += 1
                if blocks > MAX_SEGMENTS:
                    break
                continue
            while data[position] and blocks <= MAX_SEGMENTS:
                position += data[position] + 1
                blocks += 1
            position += 1
            if blocks > MAX_SEGMENTS:
                break
    if blocks > MAX_SEGMENTS:
        raise ImageTooLarge("The image takes too long to decode.")
    return Survey("GIF", width, height, 20 if frames > 1 else 4)


def colour_table_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def survey_webp(data: bytes) -> Survey:
    """libwebp allocates its canvases when the file is opened, so the size must be known before that."""
    match data[12:16]:
        case b"VP8 " if data[23:26] == b"\x9d\x01\x2a":
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
        case b"VP8L" if data[20] == 0x2F:
            (bits,) = struct.unpack_from("<I", data, 21)
            width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8X":
            width = int.from_bytes(data[24:27], "little") + 1
            height = int.from_bytes(data[27:30], "little") + 1
        case _:
            raise InvalidImage(NOT_AN_IMAGE)
    return Survey("WEBP", width, height, 17)


# --- The picture -----------------------------------------------------------------------------------------


def fit_canvas(width: int, height: int) -> tuple[int, int]:
    """The size that Llama 4's processor would resize to, or the same size where it does not shrink."""
    scale, columns, rows = max((min(columns / width, rows / height), columns, rows) for columns, rows in CANVASES)
    if scale >= 1:
        return width, height
    # In the processor's single precision: in double, the other side would sometimes be a pixel off.
    if columns / width < rows / height:
        return columns, max(1, int(np.float32(height) * (np.float32(columns) / np.float32(width))))
    return max(1, int(np.float32(width) * (np.float32(rows) / np.float32(height)))), rows


def shown_size(width: int, height: int) -> tuple[int, int]:
    """The size at which a picture leaves: its own, or that on the canvas where its own would take too much memory."""
    if width * height <= UNSHRUNK_PIXELS and max(width, height) <= max(max(CANVASES)):
        return width, height
    return fit_canvas(width, height)


def draft_size(size: tuple[int, int]) -> tuple[int, int]:
    """The least size to which a JPEG may be decoded that is resized to `size` afterwards."""
    return 2 * size[0], 2 * size[1]


def draft_reduction(width: int, height: int) -> int:
    """By how much Pillow's draft mode divides the sides of a JPEG."""
    least_width, least_height = draft_size(shown_size(width, height))
    possible = min(width // least_width, height // least_height)
    return next((reduction for reduction in (8, 4, 2) if possible >= reduction), 1)


def sampled(total: int, count: int, pixels: int) -> list[int]:
    """`count` frames evenly from first to last, among those that can be reached with bounded work.

    `total` frames of `pixels` each; at least `count` of them can always be reached.
    """
    reach = min(total, max(count, min(MAX_ANIMATION_FRAMES, MAX_ANIMATION_PIXELS // pixels)))
    count = min(count, reach)
    return [round(index * (reach - 1) / max(1, count - 1)) for index in range(count)]


def open_surveyed(data: bytes, found: Survey, size: tuple[int, int]) -> ImageFile.ImageFile:
    """The file at its first frame, not loaded yet. A JPEG will be decoded no larger than `size` needs."""
    image = Image.open(io.BytesIO(data), formats=(found.format,))
    mend_transparent_colour(image, found.bit_depth)
    if found.format == "JPEG":
        image.draft(None, draft_size(size))
    return image


def as_seen(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A decoded frame at `size` (width and height, before it is turned) as a person sees it: RGB and opaque.

    It is `image` itself, without what else was in the file, where nothing was to be done.
    """
    picture = resized(image, size)
    profile = image.info.get("icc_profile")
    alpha = picture.getchannel("A") if picture.mode == "RGBA" else None
    if isinstance(profile, bytes):
        picture = in_srgb(picture, profile)
    elif picture.mode != "RGB":  # or it would be copied
        picture = picture.convert("RGB")
    if alpha is not None:
        picture = on_ground(picture, alpha)
    orientation = orientation_of(image)
    if orientation in UPRIGHT:
        picture = picture.transpose(UPRIGHT[orientation])
    if min(picture.size) < MIN_SIDE:
        enlarged = max(MIN_SIDE, picture.width), max(MIN_SIDE, picture.height)
        picture = picture.resize(enlarged, Image.Resampling.NEAREST)
    picture.info = {}
    return picture


def mend_transparent_colour(image: Image.Image, bit_depth: int) -> None:
    """Bring the one transparent colour of a PNG to 8 bits: Pillow does that to the pixels, but not to this colour."""

    def in_eight_bits(value: int) -> int:
        return value >> 8 if bit_depth == 16 else (value & largest) * 255 // largest

    colour = image.info.get("transparency")
    largest = 2**bit_depth - 1
    if isinstance(colour, tuple):
        image.info["transparency"] = tuple(map(in_eight_bits, colour))
    elif isinstance(colour, int) and image.mode in ("L", "I;16"):
        image.info["transparency"] = in_eight_bits(colour)


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image at `size` in L, RGB, RGBA or CMYK of 8 bits.

    The filter is the processor's, so that its own resize has nothing left to do. Band by band: a second picture
    of the full size would double the memory.
    """
    if image.size == size:
        return in_eight_bits(image)
    width, height = size
    scale = image.height / height
    bands = []
    for top in range(0, height, BAND_ROWS):
        bottom = min(top + BAND_ROWS, height)
        # The filter reaches one row of the result beyond the band.
        first = max(0, math.floor((top - 1) * scale))
        last = min(image.height, math.ceil((bottom + 1) * scale))
        band = in_eight_bits(image.crop((0, first, image.width, last)))
        box = (0, top * scale - first, image.width, min(bottom * scale - first, band.height))
        bands.append(band.resize((width, bottom - top), Image.Resampling.BILINEAR, box=box))
    result = Image.new(bands[0].mode, size)
    for index, band in enumerate(bands):
        result.paste(band, (0, index * BAND_ROWS))
    return result


def in_eight_bits(image: Image.Image) -> Image.Image:
    """L, RGB, RGBA or CMYK with 8 bits a sample; every kind of transparency becomes an alpha channel."""
    if image.mode == "I;16":
        # The high byte, as Pillow takes it of colours; of grey it would clip at 255.
        grey = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        grey.info = image.info
        image = grey
    if image.mode in ("LA", "RGBA") or "transparency" in image.info:
        return image.convert("RGBA")
    match image.mode:
        case "L" | "RGB" | "CMYK":
            return image
        case "1":
            return image.convert("L")
        case "P":
            return image.convert("RGB")
        case _:
            raise InvalidImage("The image has an unknown kind of pixels.")


def in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """RGB by the embedded ICC profile. A broken profile, or one for other colours, is ignored as viewers do."""
    try:
        embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        expected = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(embedded.profile.xcolor_space)
        source = image.convert("RGB") if expected == "RGB" and image.mode in ("L", "RGBA") else image
        if source.mode != expected:
            return image.convert("RGB")
        converted = ImageCms.profileToProfile(source, embedded, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (OSError, ImageCms.PyCMSError):
        return image.convert("RGB")
    return converted or image.convert("RGB")


def on_ground(picture: Image.Image, alpha: Image.Image) -> Image.Image:
    """The picture on white, black or grey: on the one that hides least of what borders on transparency.

    White hides bright pixels, black dark ones and grey those between. Only pixels next to transparent ones can be
    lost in the ground: a photograph with a clear margin must not outvote black text beside it.
    """
    luma = np.asarray(picture.convert("L"))
    opacity = np.asarray(alpha, dtype=np.float32) / 255
    beside_transparency = 1 - np.asarray(alpha.filter(ImageFilter.MinFilter(3)), dtype=np.float32) / 255
    weight = opacity * beside_transparency
    bright, dark = luma >= 192, luma < 64
    hidden = {WHITE: weight[bright].sum(), BLACK: weight[dark].sum(), GREY: weight[~bright & ~dark].sum()}
    ground = min(hidden, key=lambda level: float(hidden[level]))
    result = Image.new("RGB", picture.size, (ground, ground, ground))
    result.paste(picture, mask=alpha)
    return result


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 (upright) when there is none or it cannot be read."""
    # Not Image.getexif: it also believes XMP, which viewers do not.
    try:
        exif = Image.Exif()
        exif.load(image.info["exif"])
        return int(exif[0x0112])
    except Exception:
        return 1
