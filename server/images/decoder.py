"""The images of a request: read, counted, checked against the limits, and only then decoded, in threads."""

import asyncio
import contextlib
import ctypes
import logging
import math
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import PIL.WebPImagePlugin  # noqa: F401  Pillow loads all its plugins when one of `formats` is not loaded yet.
from PIL import Image

from server.domain.aio import together
from server.domain.conversation import ImagePart
from server.domain.errors import (
    GuardError,
    ImageTooLarge,
    InvalidImage,
    InvalidRequest,
    OutOfMemory,
    RemoteImagesDisabled,
    TooManyImages,
)
from server.domain.pictures import PictureSizes
from server.images.colours import Colours
from server.images.drawing import composed, decoded, too_slow
from server.images.fetch import ImageFetcher
from server.images.formats import read
from server.images.picture import Picture, not_an_image
from server.images.sampling import sampled
from server.images.seen import as_seen, readings, rendered
from server.images.sizes import draft_size, shown_size
from server.images.turns import Turns, WorkingMemory
from server.images.url import read_data_url, scheme_of, too_many_bytes

WORKING_BYTES = 208 * 2**20
"""Memory of all decoding of large images at once. One image that needs more is refused."""

QUICK_BYTES = 64 * 2**20
"""Memory of all decoding of small images at once."""

QUICK_IMAGE_BYTES = 40 * 2**20
QUICK_WORK = 2_500_000
"""An image is small if it needs at most this memory and this work (pixels times passes over them)."""

KEPT_BYTES = 512 * 2**10
"""Encoded images up to this size are kept between reading and decoding. Larger ones are read twice."""

PATIENCE_PER_BYTE = 2.0 / 20e6
PATIENCE_PER_PIXEL = 4.0 / 50e6
"""Seconds, for each pixel, for which a job lets later and shorter jobs go first."""

MAX_FETCHED = 8
"""Fetched files that may wait in memory to be decoded, over all requests."""

PILLOW_BLOCK_BYTES = 64 * 2**20
"""Pixels are allocated in blocks of this size. The C library gives blocks above 32 MiB back to the system; it keeps
smaller ones, and small pictures between them pin hundreds of megabytes."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Limits on the images of one request."""

    max_images: int = 5
    """Images of one request; each sampled frame of an animation is one."""
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
    """`frames` are the pictures for the model: RGB, upright, opaque and of a `shown_size`.

    `total_frames` counts the frames of the file, `sampled_frames` those that are shown. There may be more pictures than
    that: a frame on white and on black, and the still picture that viewers without animation show.
    """

    frames: tuple[Image.Image, ...]
    total_frames: int
    format: str
    sampled_frames: int = 1

    @property
    def unseen_frames(self) -> int:
        return self.total_frames - self.sampled_frames


class ImageDecoder:
    """Decodes the images of requests in `workers` threads. One for the process, which its limits are for."""

    def __init__(
        self, limits: ImageLimits, sizes: PictureSizes, workers: int = 2, fetcher: ImageFetcher | None = None
    ) -> None:
        """`sizes` are those of the model that gets the pictures."""
        self._limits = limits
        self._sizes = sizes
        self._turns = Turns(workers)
        self._memory = WorkingMemory(WORKING_BYTES)
        self._quick_memory = WorkingMemory(QUICK_BYTES)
        self._fetcher = fetcher or ImageFetcher(limits.max_bytes, limits.timeout_s)
        self._fetched = asyncio.Semaphore(MAX_FETCHED)
        self._fetching = asyncio.Lock()
        Image.core.set_block_size(PILLOW_BLOCK_BYTES)  # type: ignore[attr-defined]
        # Pillow logs names from the file when debugging is on.
        logging.getLogger("PIL").setLevel(logging.WARNING)
        # It also warns, once for each odd tag: 64 kB of EXIF write a megabyte of warnings.
        warnings.filterwarnings("ignore", module=r"PIL\.")

    async def decode(self, images: Sequence[ImagePart], holder: str = "") -> list[DecodedImage]:
        """The images in the same order. Callers (`holder`) share the decoding threads.

        Raises TooManyImages, ImageTooLarge (bytes, pixels, memory), InvalidImage, RemoteImagesDisabled, and
        DeadlineExceeded if they are not decoded in time.
        """
        limits = self._limits
        if len(images) > limits.max_images:
            raise TooManyImages(
                f"A request may hold at most {limits.max_images} images.", param=images[limits.max_images].param
            )
        for image in images:
            self._check_scheme(image)
        deadline = time.monotonic() + limits.timeout_s
        try:
            async with (
                asyncio.timeout(limits.timeout_s),
                self._room_for(sum(scheme_of(image.url) != "data" for image in images)),
            ):
                sources = await together(self._source(image) for image in images)
                read = await together(map(partial(self._read, holder=holder), images, sources))
                self._check_number(images, [one.pictures for one in read])
                return await together(map(partial(self._decode, holder=holder, deadline=deadline), images, read))
        except TimeoutError:
            raise too_slow() from None

    def close(self) -> None:
        """Drop queued decodes and let the threads end."""
        self._turns.close()

    def _check_scheme(self, image: ImagePart) -> None:
        match scheme_of(image.url):
            case "data":
                return
            case "http" | "https":
                if not self._limits.remote:
                    raise RemoteImagesDisabled(
                        "This server does not fetch images. Send the file itself as a data: URL "
                        "(data:image/png;base64,...), or ask the operator to set GUARD_IMAGE_REMOTE=true.",
                        param=image.param,
                    )
            case _:
                raise InvalidImage("An image must be a data: URL in base64, or an http(s) URL.", param=image.param)

    @contextlib.asynccontextmanager
    async def _room_for(self, files: int) -> AsyncIterator[None]:
        """Room for all fetched files of a request at once. Requests that each held room for half of their files would
        wait for each other."""
        taken = 0
        try:
            if files:
                async with self._fetching:
                    while taken < min(files, MAX_FETCHED):
                        await self._fetched.acquire()
                        taken += 1
            yield
        finally:
            for _ in range(taken):
                self._fetched.release()

    async def _source(self, image: ImagePart) -> "_Source":
        if scheme_of(image.url) == "data":
            return _Source(partial(read_data_url, image.url, self._limits.max_bytes), len(image.url))
        data = await self._fetcher.fetch(image.url, image.param)
        return _Source(lambda: data, len(data))

    async def _read(self, image: ImagePart, source: "_Source", holder: str) -> "_Read":
        with _naming(image):
            job = partial(self._read_file, source.load)
            return await asyncio.wrap_future(
                self._turns.submit(job, quick=True, patience=source.size * PATIENCE_PER_BYTE, holder=holder)
            )

    async def _decode(self, image: ImagePart, read: "_Read", holder: str, deadline: float) -> DecodedImage:
        with _naming(image):
            job = partial(self._decode_read, read, deadline)
            return await asyncio.wrap_future(
                self._turns.submit(job, quick=read.quick, patience=read.work * PATIENCE_PER_PIXEL, holder=holder)
            )

    def _check_number(self, images: Sequence[ImagePart], pictures: Sequence[int]) -> None:
        """Checked before anything is decoded, so that no request is decoded only to be refused."""
        limit, number = self._limits.max_images, 0
        for image, its_pictures in zip(images, pictures, strict=True):
            number += its_pictures
            if number > limit:
                raise TooManyImages(
                    f"A request may hold at most {limit} images. Each sampled frame of an animated image counts as "
                    f"one, up to {self._limits.animation_frames}.",
                    param=image.param,
                )

    def _read_file(self, load: Callable[[], bytes]) -> "_Read":
        with _told_as_the_callers():
            data = load()
            picture = self._accepted(data)
            wanted = tuple(sampled(picture, self._limits.animation_frames))
            quick = _memory_of(picture) <= QUICK_IMAGE_BYTES and _work_of(picture, wanted) <= QUICK_WORK
            kept = picture if len(data) <= KEPT_BYTES else None
            return _Read(load, kept, wanted, quick, _work_of(picture, wanted))

    def _decode_read(self, read: "_Read", deadline: float) -> DecodedImage:
        with _told_as_the_callers():
            return self._decode_surveyed(read.kept or self._accepted(read.load()), read.wanted, deadline)

    def _decode_file(self, data: bytes, deadline: float) -> DecodedImage:
        """Read and decode at once, for callers that have their own thread."""
        return self._decode_read(self._read_file(lambda: data), deadline)

    def _accepted(self, data: bytes) -> Picture:
        if len(data) > self._limits.max_bytes:
            raise too_many_bytes(self._limits.max_bytes)
        picture = read(data, self._sizes)
        if not picture.pixels:
            raise InvalidImage("The image has no pixels.")
        possible = min(self._limits.max_pixels, int(WORKING_BYTES / picture.bytes_per_pixel))
        if picture.largest > possible:
            raise ImageTooLarge(f"An image of this kind may have at most {possible} pixels. Send a smaller one.")
        return picture

    def _decode_surveyed(self, picture: Picture, wanted: Sequence[int], deadline: float) -> DecodedImage:
        needed = _memory_of(picture)
        quick = needed <= QUICK_IMAGE_BYTES and _work_of(picture, wanted) <= QUICK_WORK
        with (self._quick_memory if quick else self._memory).reserved(needed, deadline):
            frames = tuple(_shown(picture, wanted, deadline, self._sizes))
            if not quick:
                _give_back_memory()
        kind = "MPO" if picture.format == "JPEG" and picture.total > 1 else picture.format
        return DecodedImage(frames, picture.total, kind, len(wanted))


@dataclass(frozen=True, slots=True)
class _Source:
    """A way to get the bytes of an image, and about how many there are."""

    load: Callable[[], bytes]
    size: int


@dataclass(frozen=True, slots=True)
class _Read:
    """An image that was read and accepted. `kept` is None if it must be read again."""

    load: Callable[[], bytes]
    kept: Picture | None
    wanted: tuple[int, ...]
    quick: bool
    work: int

    @property
    def pictures(self) -> int:
        return len(self.wanted)


def _shown(picture: Picture, wanted: Sequence[int], deadline: float, sizes: PictureSizes) -> Iterable[Image.Image]:
    size = shown_size(picture.width, picture.height, sizes)
    stills = [] if picture.poster is None else [picture.poster]
    (layer, *others) = picture.layers
    if not others and (layer.left, layer.top, layer.width, layer.height) == (0, 0, picture.width, picture.height):
        stills = [layer, *stills]
    else:
        colours = Colours(picture.profiles, "RGB")
        for canvas in composed(picture, wanted, deadline):
            yield from as_seen(canvas, size, picture.orientation, colours, sizes)
    for still in stills:
        # The decoded picture is freed before its renderings are made.
        frames = readings(*decoded(still, picture, draft_size(size)), size, sizes)
        yield from rendered(frames, picture.orientation, sizes)


def _give_back_memory() -> None:
    """Return memory that the C library keeps in each thread to the system: up to 32 MiB of every size that was used."""
    with contextlib.suppress(AttributeError, OSError):  # only glibc has this function
        ctypes.CDLL(None).malloc_trim(0)


def _memory_of(picture: Picture) -> int:
    return math.ceil(picture.largest * picture.bytes_per_pixel)


def _work_of(picture: Picture, wanted: Sequence[int]) -> int:
    """Pixels times passes over them."""
    if picture.work:
        return picture.work
    return sum(layer.pixels for layer in picture.layers[: wanted[-1] + 1]) + len(wanted) * picture.pixels


@contextlib.contextmanager
def _naming(image: ImagePart) -> Iterator[None]:
    """Make errors name the field that held the image."""
    try:
        yield
    except InvalidRequest as error:
        raise error.at(image.param) from None


@contextlib.contextmanager
def _told_as_the_callers() -> Iterator[None]:
    """A decoder of hostile bytes may raise any error, with bytes of the image and memory addresses in the message."""
    try:
        yield
    except GuardError:
        raise
    except MemoryError:
        # Within the limits, so it is the server that has too little.
        raise OutOfMemory("The server has no memory left to decode the image. Try again later.") from None
    except Image.DecompressionBombError:
        raise ImageTooLarge("The image needs too much memory to decode. Send a smaller one.") from None
    except Exception:
        raise not_an_image() from None
