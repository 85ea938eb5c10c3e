"""What the model is shown of every kind of picture, and what is refused before it costs anything."""

import asyncio
import base64
import contextlib
import io
import logging
import struct
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw, ImageOps

from server.domain.conversation import ImagePart
from server.domain.errors import (
    DeadlineExceeded,
    ImageTooLarge,
    InvalidImage,
    OutOfMemory,
    RemoteImagesDisabled,
    TooManyImages,
)
from server.domain.pictures import PictureSizes
from server.families.llama_guard.pictures import SIZES
from server.images import DecodedImage, ImageDecoder, ImageLimits, decoder, sampling, seen, turns, url
from server.images.colours import Colours
from server.images.fetch import ImageFetcher
from server.images.picture import Layer, Picture
from tests.images.files import colours_in, contrast, pixel

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
LIMITS = ImageLimits()


def part(data: bytes, media_type="image/png", param="input[0].image_url.url") -> ImagePart:
    return ImagePart(f"data:{media_type};base64,{base64.b64encode(data).decode()}", param)


def encoded(image: Image.Image, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decode_all(*parts: ImagePart, limits: ImageLimits = LIMITS) -> list[DecodedImage]:
    async def run() -> list[DecodedImage]:
        decoder = ImageDecoder(limits, SIZES)
        try:
            return await decoder.decode(parts)
        finally:
            decoder.close()

    return asyncio.run(run())


def decode(data: bytes, limits: ImageLimits = LIMITS) -> DecodedImage:
    return decode_all(part(data), limits=limits)[0]


def frame(data: bytes) -> Image.Image:
    (picture,) = decode(data).frames
    assert picture.mode == "RGB"
    return picture


def near(colour, expected, tolerance=4) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(colour, expected, strict=True))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, bit_depth, colour_type, rows: bytes, *extra: bytes) -> bytes:
    """A PNG out of filtered rows; `extra` chunks stand before the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + chunk(b"IEND", b"")


def noise(width, height) -> Image.Image:
    return Image.effect_noise((max(1, width // 4), max(1, height // 4)), 80).resize((width, height)).convert("RGB")


# --- What is accepted ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
@pytest.mark.parametrize("media_type", ["image/png", "IMAGE/JPEG", "application/octet-stream", "", "text/plain;a=b"])
def test_the_bytes_decide_not_the_media_type(kind, media_type):
    image = part(encoded(Image.new("RGB", (20, 10), RED), kind), media_type)
    (decoded,) = decode_all(image)
    assert decoded.format == kind
    assert decoded.total_frames == 1
    assert [picture.size for picture in decoded.frames] == [(20, 10)]
    assert near(decoded.frames[0].getpixel((5, 5)), RED)


def test_order_is_kept():
    colours = [RED, GREEN, BLUE, WHITE, BLACK]
    sizes = [(900, 900), (10, 10), (500, 20), (8, 8), (64, 64)]
    decoded = decode_all(*(part(encoded(Image.new("RGB", s, c))) for s, c in zip(sizes, colours, strict=True)))
    assert [d.frames[0].getpixel((2, 2)) for d in decoded] == colours
    assert decode_all() == []


def test_base64_tolerates_line_breaks_and_missing_padding():
    for size in (10, 11, 12, 13):  # Files of every length modulo 3.
        data = encoded(Image.new("RGB", (size, 10), RED)) + b"x" * size
        text = base64.b64encode(data).decode()
        folded = "\r\n".join(textwrap.wrap(text, 76))
        for content in (text, text.rstrip("="), folded, f" {folded}\n"):
            (decoded,) = decode_all(ImagePart("DATA:image/png;BASE64," + content))
            assert decoded.frames[0].getpixel((0, 0)) == RED


def test_base64_in_several_slices(monkeypatch):
    data = bytes(range(256)) * 5
    text = "data:;base64," + "\n".join(textwrap.wrap(base64.b64encode(data).decode(), 77))
    for size in (1, 2, 3, 4, 5, 7, 64, 1000, 10_000):
        monkeypatch.setattr(url, "SLICE", size)
        assert url.read_data_url(text, 10_000) == data


@pytest.mark.parametrize("slice_size", [4, 2**20])
@pytest.mark.parametrize(
    "text", ["A", "AAAA*AAA", "QQ==QQ==", "QQ==QQ", "QQ==Q", "Q=Q=", "====", "AA-_", "AAA%3D", "ÄÄÄÄ"]
)
def test_garbage_in_base64_is_refused(text, slice_size, monkeypatch):
    monkeypatch.setattr(url, "SLICE", slice_size)
    with pytest.raises(InvalidImage):
        url.read_data_url("data:image/png;base64," + text, 1000)


HOSTILE_URLS = {
    "percent-encoded": "data:image/svg+xml,%3Csvg%2F%3E",
    "no comma": "data:image/png;base64",
    "base64 is not last": "data:image/png;base64;charset=utf-8,AAAA",
    "endless header": "data:" + "a" * 5000 + ";base64,AAAA",
    "empty": "data:image/png;base64,",
    "file": "file:///etc/passwd",
    "ftp": "ftp://example.com/a.png",
    "bare base64": base64.b64encode(b"\x89PNG\r\n\x1a\n").decode(),
    "path": "/etc/passwd",
    "nothing": "",
    "blob": "blob:https://example.com/1",
}


@pytest.mark.parametrize("url", HOSTILE_URLS.values(), ids=HOSTILE_URLS.keys())
def test_other_urls_are_refused(url):
    with pytest.raises(InvalidImage) as caught:
        decode_all(ImagePart(url, "messages[3].content[1].image_url.url"))
    assert caught.value.param == "messages[3].content[1].image_url.url"
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "ICO", "PPM", "TGA", "JPEG2000", "PCX", "AVIF", "PDF", "EPS"])
def test_other_formats_are_not_opened(kind):
    with pytest.raises(InvalidImage):
        decode(encoded(Image.new("RGB", (16, 16), RED), kind))


def test_remote_urls_while_fetching_is_off():
    for address in ("http://example.com/CANARY.png", "HTTPS://example.com/CANARY.png"):
        with pytest.raises(RemoteImagesDisabled) as caught:
            decode_all(ImagePart(address, "input[1]"))
        assert caught.value.param == "input[1]"
        assert "GUARD_IMAGE_REMOTE" in caught.value.message
        assert "data:" in caught.value.message
        assert "CANARY" not in caught.value.message


def test_remote_urls_while_fetching_is_on():
    class Fetcher(ImageFetcher):
        async def fetch(self, url: str, param: str) -> bytes:
            assert (url, param) == ("https://example.com/a.png", "input[1]")
            return encoded(Image.new("RGB", (9, 9), BLUE))

    async def run():
        decoder = ImageDecoder(ImageLimits(remote=True), SIZES, fetcher=Fetcher(max_bytes=1000, timeout_s=1.0))
        return await decoder.decode([ImagePart("https://example.com/a.png", "input[1]")])

    assert asyncio.run(run())[0].frames[0].getpixel((0, 0)) == BLUE


# --- Bounds ----------------------------------------------------------------------------------------------


def test_a_server_without_memory_does_not_blame_the_image(monkeypatch):
    def starved(data, sizes):
        raise MemoryError

    monkeypatch.setattr("server.images.decoder.read", starved)
    with pytest.raises(OutOfMemory) as caught:
        decode(encoded(noise(8, 8)))
    assert (caught.value.status, caught.value.retryable) == (503, True)


def test_too_many_images_are_refused_before_any_is_read():
    broken = [ImagePart("data:image/png;base64,****", f"input[{index}]") for index in range(6)]
    with pytest.raises(TooManyImages) as caught:
        decode_all(*broken)
    assert caught.value.param == "input[5]"


def test_sampled_frames_count_as_images():
    animation = part(animated("GIF", [RED, GREEN, BLUE, WHITE]))
    still = part(encoded(Image.new("RGB", (8, 8))), param="input[4]")
    assert [len(d.frames) for d in decode_all(animation, still, still)] == [3, 1, 1]
    with pytest.raises(TooManyImages) as caught:
        decode_all(animation, still, still, still)
    assert caught.value.param == "input[4]"
    assert "animated" in caught.value.message


def test_too_many_bytes():
    data = encoded(noise(100, 100))
    limits = ImageLimits(max_bytes=len(data))
    assert decode(data, limits).frames
    with pytest.raises(ImageTooLarge, match=f"at most {len(data)} bytes") as caught:
        decode(data + b"x", limits)
    assert caught.value.param == "input[0].image_url.url"


@pytest.mark.usefixtures("no_garbage_collection")
def test_too_many_bytes_are_not_even_decoded():
    text = "data:;base64," + "A" * (30 * 2**20)
    started = time.process_time()
    with pytest.raises(ImageTooLarge):
        url.read_data_url(text, 20 * 2**20)
    assert time.process_time() - started < 0.02


def webp_chunk(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def riff(*chunks: bytes) -> bytes:
    content = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(content)) + content


BOMB = png(13370, 13370, 1, 0, b"")
HUGE = {
    "png": BOMB,
    "gif": b"GIF89a" + struct.pack("<HH", 60000, 60000) + b"\0\0\0,\0\0\0\0\1\0\1\0\0\x02\0;",
    "gif frame": b"GIF89a\x08\0\x08\0\0\0\0," + struct.pack("<HHHH", 0, 0, 60000, 60000) + b"\0\x02\0;",
    "webp": riff(
        webp_chunk(b"VP8X", b"\2\0\0\0" + b"\xff\xff\xff" * 2),
        webp_chunk(b"ANIM", bytes(6)),
        webp_chunk(b"ANMF", bytes(16) + webp_chunk(b"VP8L", b"\x2f\0\0\0\0")),
    ),
    "webp lossless": riff(webp_chunk(b"VP8L", b"\x2f" + struct.pack("<I", 2**28 - 1))),
    "webp lossy": riff(webp_chunk(b"VP8 ", b"\0\0\0\x9d\x01\x2a" + b"\xff\x3f" * 2)),
    "jpeg": b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03\x01\x11\0\x02\x11\0\x03\x11\0\xff\xda\0\x02\xff\xd9",
}


@pytest.mark.parametrize("data", HUGE.values(), ids=HUGE.keys())
@pytest.mark.usefixtures("no_garbage_collection")
def test_declared_pixels_are_refused_within_100_ms(data, monkeypatch):
    """79 bytes that claim 13370 x 13370 pixels add 855 MB when they are decoded."""
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    assert len(data) <= 84
    started = time.process_time()
    with pytest.raises(ImageTooLarge, match="pixels"):
        decode(data)
    assert time.process_time() - started < 0.1


def test_pixel_bound_is_exact():
    data = encoded(Image.new("L", (100, 50)))
    assert decode(data, ImageLimits(max_pixels=5000)).frames[0].size == (100, 50)
    with pytest.raises(ImageTooLarge, match="at most 4999 pixels"):
        decode(data, ImageLimits(max_pixels=4999))


def test_a_kind_that_needs_more_memory_may_have_fewer_pixels(monkeypatch):
    monkeypatch.setattr(decoder, "WORKING_BYTES", 1_000_000)
    picture = noise(400, 400)
    assert decode(encoded(picture, "PNG")).frames
    assert decode(encoded(picture, "JPEG")).frames
    for data in (encoded(picture, "WEBP"), encoded(picture, "JPEG", progressive=True, subsampling=0)):
        with pytest.raises(ImageTooLarge):
            decode(data)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_no_pixels(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidImage):
        decode(png(*size, 8, 0, b""))


WHOLE = {
    "jpeg": encoded(noise(300, 200), "JPEG"),
    "progressive jpeg": encoded(noise(300, 200), "JPEG", progressive=True),
    "png": encoded(noise(300, 200), "PNG"),
    "webp": encoded(noise(300, 200), "WEBP"),
    "gif": encoded(noise(300, 200), "GIF"),
}


@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE.keys())
def test_truncated_files_are_refused(data):
    assert decode(data).frames
    for kept in (0.02, 0.3, 0.6, 0.9):
        with pytest.raises(InvalidImage):
            decode(data[: int(len(data) * kept)])


@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE.keys())
def test_damaged_files_never_raise_anything_else(data):
    random = np.random.default_rng(7)
    for _ in range(20):
        damaged = bytearray(data)
        for position in random.integers(0, min(len(data), 400), 4):
            damaged[position] = random.integers(0, 256)
        with contextlib.suppress(InvalidImage, ImageTooLarge):
            decode(bytes(damaged))


def test_a_decoders_own_words_stay_inside(monkeypatch):
    """They hold addresses of the process (CVE-2026-22778)."""

    def fail(*_, **__):
        raise OSError("cannot identify <_io.BytesIO object at 0x7f6e0a9fd1c0> CANARY")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(InvalidImage) as caught:
        decode(WHOLE["png"])
    assert "0x7f6e" not in "".join(traceback.format_exception(caught.value))


def text_bomb(kind: bytes, prefix: bytes, count: int) -> bytes:
    text = prefix + zlib.compress(b"A" * 2**20, 9)
    return png(8, 8, 8, 0, b"\0" * 72, *[chunk(kind, text)] * count)


TEXT_BOMBS = {
    "zTXt": text_bomb(b"zTXt", b"a\0\0", 200),
    "iTXt": text_bomb(b"iTXt", b"a\0\1\0\0\0", 200),
}


@pytest.mark.parametrize("data", TEXT_BOMBS.values(), ids=TEXT_BOMBS.keys())
def test_texts_are_neither_read_nor_decide(data):
    started = time.process_time()
    assert frame(data).getpixel((2, 2)) == BLACK
    assert time.process_time() - started < 0.5


SLOW_STRUCTURES = {
    "png chunks": png(8, 8, 8, 0, b"\0" * 72, *[chunk(b"abCd", b"")] * 110_000),
    "gif comments": b"GIF89a\x08\0\x08\0\0\0\0!\xfe" + b"\x01a" * 110_000 + b"\0;",
    "gif junk": b"GIF89a\x08\0\x08\0\0\0\0" + b"a" * 110_000 + b";",
    "jpeg segments": b"\xff\xd8" + b"\xff\xe0\0\x02" * 110_000,
    "jpeg scans": encoded(noise(2000, 1000), "JPEG", progressive=True)[:-2]
    + b"\xff\xda\0\x08\x01\x01\0\x01\x05\0" * 1000
    + b"\xff\xd9",
}


@pytest.mark.parametrize("name", SLOW_STRUCTURES)
@pytest.mark.usefixtures("no_garbage_collection")
def test_small_files_that_keep_a_decoder_busy(name):
    started = time.process_time()
    # Behind junk in a GIF, no viewer reads on.
    with pytest.raises(InvalidImage if name == "gif junk" else ImageTooLarge):
        decode(SLOW_STRUCTURES[name])
    assert time.process_time() - started < 1


def test_exif_that_writes_a_megabyte_of_warnings(recwarn):
    entries = b"".join(struct.pack(">HHII", index + 1000, 1, 60000, 0) for index in range(5000))
    exif = (b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 5000) + entries + bytes(4)).ljust(65000, b"a")
    data = encoded(Image.new("RGB", (8, 8), RED), "JPEG")
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[20:]
    assert near(frame(data).getpixel((2, 2)), RED)
    assert not recwarn.list


def test_nothing_of_the_file_is_logged(caplog):
    caplog.set_level(logging.DEBUG)
    exif = Image.Exif()
    exif[0x010E] = "CANARY"
    profile = chunk(b"iCCP", b"CANARY\0\0" + zlib.compress(b"CANARY"))
    decode(png(8, 8, 8, 0, b"\0" * 72, profile, chunk(b"caRY", b"CANARY")))
    decode(encoded(Image.new("RGB", (8, 8)), "JPEG", exif=exif))
    assert not [record for record in caplog.records if record.name.startswith("PIL")]


async def test_time_is_bounded_and_queued_decodes_never_start(monkeypatch):
    started, release = [], threading.Event()

    def stuck(picture, wanted, deadline):
        started.append(picture)
        release.wait(5)

    decoder = ImageDecoder(ImageLimits(timeout_s=0.2), SIZES, workers=2)
    monkeypatch.setattr(decoder, "_decode_surveyed", stuck)
    begun = time.perf_counter()
    with pytest.raises(DeadlineExceeded, match="in time"):
        await decoder.decode([part(encoded(Image.new("L", (8, 8))))] * 5)
    assert time.perf_counter() - begun < 1
    release.set()
    decoder._turns.close(wait=True)
    assert len(started) == 3  # Small pictures have a thread besides.


async def test_a_cancelled_request_cancels_its_queued_decodes(monkeypatch):
    started, release, loop, running = [], threading.Event(), asyncio.get_running_loop(), asyncio.Event()

    def stuck(picture, wanted, deadline):
        started.append(picture)
        loop.call_soon_threadsafe(running.set)
        release.wait(5)

    decoder = ImageDecoder(LIMITS, SIZES, workers=1)
    monkeypatch.setattr(decoder, "_decode_surveyed", stuck)
    request = asyncio.create_task(decoder.decode([part(encoded(Image.new("L", (8, 8))))] * 5))
    await running.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    release.set()
    decoder._turns.close(wait=True)
    assert len(started) <= 2


async def test_one_refused_image_cancels_the_others(monkeypatch):
    started, release = [], threading.Event()

    def stuck(picture, wanted, deadline):
        started.append(picture)
        release.wait(5)

    decoder = ImageDecoder(LIMITS, SIZES, workers=1)
    monkeypatch.setattr(decoder, "_decode_surveyed", stuck)
    with pytest.raises(InvalidImage):
        await decoder.decode([part(b"broken"), *[part(encoded(Image.new("L", (8, 8))))] * 4])
    await asyncio.sleep(0)  # The cancelled tasks take notice.
    release.set()
    decoder._turns.close(wait=True)
    assert not started


async def test_all_work_is_done_off_the_event_loop(monkeypatch):
    threads = set()

    def recorded(function):
        def call(*arguments):
            threads.add(threading.current_thread().name)
            return function(*arguments)

        return call

    for module, name in ((decoder, "read_data_url"), (decoder, "read"), (decoder, "readings"), (decoder, "rendered")):
        monkeypatch.setattr(module, name, recorded(getattr(module, name)))
    await ImageDecoder(LIMITS, SIZES).decode([part(encoded(noise(2000, 1500), "JPEG"))] * 4)
    assert threads <= {"image-decoder_0", "image-decoder_1", "image-decoder-quick_0"}
    assert threads


def test_working_memory_is_shared_in_order():
    memory, order = turns.WorkingMemory(10), []
    deadline = time.monotonic() + 5

    def use(name, size):
        with memory.reserved(size, deadline):
            order.append(name)

    with memory.reserved(6, deadline):
        large = threading.Thread(target=use, args=("large", 10))
        large.start()
        time.sleep(0.05)
        small = threading.Thread(target=use, args=("small", 1))
        small.start()
        time.sleep(0.05)
        assert order == []
    large.join()
    small.join()
    assert order == ["large", "small"]
    with memory.reserved(1, deadline), pytest.raises(DeadlineExceeded), memory.reserved(10, time.monotonic() + 0.01):
        pass


MEMORY = """
import asyncio, base64, io, resource, sys
from PIL import Image
from server.domain.conversation import ImagePart
from server.families.llama_guard.pictures import SIZES
from server.images import ImageDecoder, ImageLimits
kind, width, height = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
file = io.BytesIO()
Image.effect_noise((width // 40, height // 40), 80).resize((width, height), 0).convert(sys.argv[4]).save(
    file, kind, **({"compress_level": 1} if kind == "PNG" else {"method": 0} if kind == "WEBP" else {}))
image = ImagePart("data:;base64," + base64.b64encode(file.getvalue()).decode())
decoder = ImageDecoder(ImageLimits(timeout_s=120), SIZES)
def measure(field):
    return int(next(line for line in open("/proc/self/status") if line.startswith(field)).split()[1]) / 1024
open("/proc/self/clear_refs", "w").write("5")
before = measure("VmRSS")
async def run():
    return await asyncio.gather(*(decoder.decode([image] * 5) for _ in range(8)))
held = asyncio.run(run())
assert len(held) == 8
print(measure("VmHWM") - before)
"""


def memory_of(*arguments) -> float:
    """Megabytes that 8 clients with 5 images each add at the peak, all their frames being held."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", MEMORY, *map(str, arguments)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("size", [(2600, 2000), (1920, 1200)])
def test_memory_of_40_photographs_at_once(size):
    """Of such as are shrunk, and of the largest that are not."""
    assert memory_of("JPEG", *size, "RGB") < 500


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "arguments", [("PNG", 8160, 6120, "RGB"), ("PNG", 7000, 7000, "RGBA"), ("WEBP", 4000, 3200, "RGBA")]
)
def test_memory_of_40_images_of_the_largest_size(arguments):
    # 40 pictures of up to 7 MB that the callers hold, and 300 MB of decoding.
    assert memory_of(*arguments) < 640


# --- What the model is shown -----------------------------------------------------------------------------


def corners() -> Image.Image:
    """24 x 16: red, green, blue and white quarters; every orientation looks different."""
    image = Image.new("RGB", (24, 16))
    for colour, box in zip((RED, GREEN, BLUE, WHITE), ((0, 0), (12, 0), (0, 8), (12, 8)), strict=True):
        image.paste(colour, (*box, box[0] + 12, box[1] + 8))
    return image


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = encoded(corners(), kind, exif=exif, **options)
    shown, expected = frame(data), ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert shown.size == ((16, 24) if orientation in (5, 6, 7, 8) else (24, 16))
    for x in (3, shown.width - 4):
        for y in (3, shown.height - 4):
            assert near(shown.getpixel((x, y)), expected.convert("RGB").getpixel((x, y)), 8)


def test_orientation_of_xmp_alone_is_ignored_as_viewers_do():
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert frame(encoded(corners(), "JPEG", xmp=xmp)).size == (24, 16)


def written(colour, mode="RGBA") -> Image.Image:
    """Text in one colour on transparent pixels that carry the same colour, so that dropping alpha hides it."""
    image = Image.new("RGBA", (200, 60), (*colour, 0))
    ImageDraw.Draw(image).text((10, 5), "hidden", fill=(*colour, 255), font_size=40)
    return image.convert(mode)


def clearest(data: bytes) -> Image.Image:
    """Of the renderings on white and on black, the one with more contrast."""
    return max(decode(data).frames, key=contrast)


@pytest.mark.parametrize("colour", [WHITE, BLACK, (128, 128, 128), (255, 255, 0), (0, 0, 120)])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparent_ground_hides_nothing(colour, kind):
    image = written(colour)
    assert contrast(image.convert("RGB")) == 0
    shown = clearest(encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert contrast(shown) > 100
    # It is the text that differs from the ground.
    opaque = np.asarray(image.getchannel("A")) == 255
    assert abs(int(np.asarray(shown.convert("L"))[opaque].mean()) - int(np.asarray(shown.convert("L"))[0, 0])) > 100


def test_white_and_black_text_in_one_image_are_both_visible():
    image = Image.new("RGBA", (200, 120), (0, 0, 0, 0))
    for top, colour in ((5, WHITE), (60, BLACK)):
        ImageDraw.Draw(image).text((10, top), "hidden", fill=(*colour, 255), font_size=40)
    on_white, on_black = decode(encoded(image)).frames
    assert contrast(on_black.crop((0, 0, 200, 60))) > 100
    assert contrast(on_white.crop((0, 60, 200, 120))) > 100


def test_a_bright_photograph_does_not_outvote_black_text_beside_it():
    image = Image.new("RGBA", (600, 200), (0, 0, 0, 0))
    image.paste(Image.effect_noise((300, 180), 20).point(lambda v: min(255, v + 90)).convert("RGB"), (10, 10))
    alpha = image.getchannel("A")
    alpha.paste(255, (10, 10, 310, 190))
    image.putalpha(alpha)
    ImageDraw.Draw(image).text((350, 20), "hidden\ntext", fill=(0, 0, 0, 255), font_size=60)
    on_white, _ = decode(encoded(image)).frames
    assert contrast(on_white.crop((340, 0, 600, 200))) > 100


def test_half_transparent_pixels_are_blended():
    image = Image.new("RGBA", (40, 40), (255, 0, 0, 128))
    assert near(frame(encoded(image)).getpixel((20, 20)), (255, 127, 127), 2)


def test_invisible_pixels_stay_invisible():
    image = Image.new("RGBA", (40, 40), (255, 0, 0, 0))
    assert frame(encoded(image)).getcolors() == [(1600, WHITE)]


def test_transparency_survives_shrinking():
    image = Image.new("RGBA", (3000, 3000), (255, 255, 255, 0))
    image.paste((255, 255, 255, 255), (1000, 1000, 2000, 2000))
    _, on_black = decode(encoded(image, compress_level=1)).frames
    assert on_black.getpixel((on_black.width // 2, on_black.height // 2)) == WHITE
    assert on_black.getpixel((5, 5)) == BLACK


def test_grey_with_alpha():
    assert contrast(clearest(encoded(written(WHITE, "LA")))) > 100
    assert contrast(clearest(encoded(written(BLACK, "LA")))) > 100


def palette_image(*alphas) -> Image.Image:
    image = Image.new("P", (30, 10))
    image.putpalette([*RED, *GREEN, *BLUE])
    for index in range(3):
        image.paste(index, (10 * index, 0, 10 * index + 10, 10))
    if alphas:
        image.info["transparency"] = bytes(alphas)
    return image


def test_palette():
    shown = frame(encoded(palette_image()))
    assert [shown.getpixel((x, 5)) for x in (5, 15, 25)] == [RED, GREEN, BLUE]
    shown = frame(encoded(palette_image(255, 0, 128), transparency=bytes([255, 0, 128])))
    assert [near(shown.getpixel((x, 5)), c, 2) for x, c in ((5, RED), (15, WHITE), (25, (127, 127, 255)))] == [True] * 3
    shown = frame(encoded(palette_image(), "GIF", transparency=1))
    assert [shown.getpixel((x, 5)) for x in (5, 15, 25)] == [RED, WHITE, BLUE]


def test_16_bit_grey_is_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)
    shown = np.asarray(frame(encoded(Image.fromarray(np.tile(ramp, (8, 1))))))
    assert (shown[4, :, 0] == np.arange(256)).all()
    large = np.tile(np.linspace(0, 65535, 4000).astype(np.uint16), (2000, 1))
    shown = np.asarray(frame(encoded(Image.fromarray(large), compress_level=1)))
    assert shown.shape[1] < 4000
    assert abs(shown[:, :, 0].mean() - 127.5) < 1


def row16(row: bytes) -> bytes:
    """A row of four pixels, four times."""
    return row[:1] + row[1:] * 4


def test_16_bit_colour_and_alpha():
    row = b"\0" + struct.pack(">12H", *(65535, 0, 0), *(0, 32896, 0), *(0, 0, 65535), *(257, 514, 65278))
    shown = frame(png(4, 4, 16, 2, row * 4))
    assert [shown.getpixel((x, 0)) for x in range(4)] == [RED, (0, 128, 0), BLUE, (1, 2, 254)]
    row = b"\0" + struct.pack(">16H", *(65535, 65535, 65535, 0) * 2, *(65535, 65535, 65535, 65535) * 2)
    assert contrast(clearest(png(16, 16, 16, 6, row16(row) * 16))) == 255
    row = b"\0" + struct.pack(">8H", *(65535, 0) * 2, *(65535, 65535) * 2)
    assert contrast(clearest(png(16, 16, 16, 4, row16(row) * 16))) == 255


@pytest.mark.parametrize(
    ("bit_depth", "sample"), [(2, 1), (4, 1), (4, 7), (8, 5), (8, 128), (16, 0x8001), (16, 0x0180)]
)
def test_one_transparent_grey(bit_depth, sample):
    """Black beside transparent grey: a white ground must shine through. The colour is in the file's own bits."""
    bits = "".join(f"{value:0{bit_depth}b}" for value in [sample] * 8 + [0] * 8)
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    shown = frame(png(16, 8, bit_depth, 0, row * 8, chunk(b"tRNS", struct.pack(">H", sample))))
    assert (shown.getpixel((2, 4)), shown.getpixel((12, 4))) == (WHITE, BLACK)


@pytest.mark.parametrize("colour", [(0xFFFF, 0, 0), (0x8000, 0, 0x8000), (0x1234, 0x5678, 0x9ABC)])
def test_one_transparent_colour_in_16_bits(colour):
    row = b"\0" + struct.pack(">12H", *colour * 2, *(0, 0, 0) * 2)
    shown = frame(png(4, 4, 16, 2, row * 4, chunk(b"tRNS", struct.pack(">3H", *colour))))
    assert (shown.getpixel((0, 0)), shown.getpixel((3, 0))) == (WHITE, BLACK)


def test_one_transparent_colour_in_8_bits():
    row = b"\0" + bytes([*(200, 100, 50) * 2, *(0, 0, 0) * 2])
    shown = frame(png(4, 4, 8, 2, row * 4, chunk(b"tRNS", struct.pack(">3H", 200, 100, 50))))
    assert (shown.getpixel((0, 0)), shown.getpixel((3, 0))) == (WHITE, BLACK)


def test_one_bit():
    image = Image.new("1", (20, 20))
    image.paste(1, (10, 0, 20, 20))
    shown = frame(encoded(image))
    assert (shown.getpixel((2, 2)), shown.getpixel((15, 2))) == (BLACK, WHITE)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_colours(mode, progressive):
    image = Image.new("RGB", (64, 64), (200, 60, 60)).convert(mode)
    shown = frame(encoded(image, "JPEG", quality=95, progressive=progressive))
    assert near(shown.getpixel((30, 30)), image.convert("RGB").getpixel((0, 0)))


def adobe_cmyk(transform: int, samples: Image.Image) -> bytes:
    """A CMYK or YCCK JPEG with Adobe's marker."""
    data = encoded(samples, "JPEG", quality=95)
    start = data.find(b"\xff\xee")
    assert start < 0 or data[start + 4 : start + 9] == b"Adobe"
    marker = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])
    return data[:start] + marker + data[start + 16 :] if start > 0 else data[:2] + marker + data[2:]


def test_cmyk_of_adobe_is_inverted():
    # No ink but cyan, as Adobe's programs store it: 255 is no ink.
    shown = frame(adobe_cmyk(0, Image.new("CMYK", (32, 32), (255, 0, 0, 0))))
    assert near(shown.getpixel((10, 10)), (0, 255, 255))


def test_icc_profile_is_applied():
    swapped = swapped_profile()
    data = encoded(Image.new("RGB", (32, 32), (200, 20, 20)), "PNG", icc_profile=swapped)
    red, _, blue = pixel(frame(data), (5, 5))
    assert blue > 150 > 80 > red
    shown = frame(encoded(written((200, 20, 20)), "PNG", icc_profile=swapped))
    assert any(blue > 150 > 80 > red for red, _, blue in colours_in(shown))


def swapped_profile() -> bytes:
    """sRGB with the primaries of red and blue exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    entries = {}
    for index in range(struct.unpack_from(">I", profile, 128)[0]):
        tag, offset, size = struct.unpack_from(">4sII", profile, 132 + 12 * index)
        entries[tag] = (offset, size, 132 + 12 * index)
    result = bytearray(profile)
    for one, other in ((b"rXYZ", b"bXYZ"), (b"bXYZ", b"rXYZ")):
        struct.pack_into(">II", result, entries[one][2] + 4, *entries[other][:2])
    return bytes(result)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_broken_or_foreign_icc_profiles_are_ignored(kind):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (b"", b"nonsense", srgb[:200], lab):
        shown = frame(encoded(Image.new("RGB", (32, 32), (200, 20, 20)), kind, icc_profile=profile))
        assert near(shown.getpixel((5, 5)), (200, 20, 20), 6)
    # A grey picture with the usual profile of colours.
    if kind == "JPEG":
        shown = frame(encoded(Image.new("L", (32, 32), 90), kind, icc_profile=srgb))
        assert near(shown.getpixel((5, 5)), (90, 90, 90), 3)


def test_mpo_shows_its_first_picture():
    first, second = Image.new("RGB", (64, 48), RED), Image.new("RGB", (64, 48), BLUE)
    decoded = decode(encoded(first, "MPO", save_all=True, append_images=[second]))
    assert (decoded.format, decoded.total_frames, len(decoded.frames)) == ("MPO", 2, 1)
    assert near(decoded.frames[0].getpixel((5, 5)), RED)


def test_a_video_after_the_jpeg_is_no_part_of_it():
    data = encoded(Image.new("RGB", (2000, 1000), RED), "JPEG") + b"\xff\xda" * 100_000
    assert near(frame(data).getpixel((5, 5)), RED)


# --- Animations ------------------------------------------------------------------------------------------


def animated(kind, colours, size=(40, 30), **options) -> bytes:
    first, *others = (Image.new("RGB", size, colour) for colour in colours)
    if kind == "WEBP":
        options |= {"lossless": True, "minimize_size": False, "kmin": 0, "kmax": 1}
    return encoded(first, kind, save_all=True, append_images=others, duration=100, loop=0, **options)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_first_middle_and_last_frame(kind):
    colours = [RED, WHITE, GREEN, BLACK, BLUE]
    decoded = decode(animated(kind, colours))
    assert decoded.total_frames == 5
    assert [near(f.getpixel((5, 5)), c) for f, c in zip(decoded.frames, (RED, GREEN, BLUE), strict=True)] == [True] * 3
    for count, expected in ((1, [RED]), (2, [RED, BLUE]), (5, colours), (9, colours)):
        decoded = decode(animated(kind, colours), ImageLimits(max_images=9, animation_frames=count))
        assert [near(f.getpixel((5, 5)), c) for f, c in zip(decoded.frames, expected, strict=True)] == [True] * len(
            expected
        )


def test_two_frames_are_both_shown():
    decoded = decode(animated("GIF", [RED, BLUE]))
    assert [f.getpixel((1, 1)) for f in decoded.frames] == [RED, BLUE]


def moving_square_gif(disposal: int) -> bytes:
    def square(left):
        image = Image.new("RGBA", (60, 20), (0, 0, 0, 0))
        image.paste((*RED, 255), (left, 0, left + 10, 10))
        return image

    ground = Image.new("RGBA", (60, 20), (*WHITE, 255))
    options = {"disposal": [1, disposal, disposal], "duration": 100}
    return encoded(ground, "GIF", save_all=True, append_images=[square(20), square(40)], **options)


def moving_square_png(disposal: int) -> bytes:
    def control(number, width, height, left, disposal):
        return chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, width, height, left, 0, 1, 10, disposal, 1))

    square = zlib.compress((b"\0" + bytes(RED) * 10) * 10)
    start = png(
        60, 20, 8, 2, (b"\0" + b"\xff" * 180) * 20, chunk(b"acTL", struct.pack(">II", 3, 0)), control(0, 60, 20, 0, 0)
    )
    frames = [
        control(1, 10, 10, 20, disposal) + chunk(b"fdAT", struct.pack(">I", 2) + square),
        control(3, 10, 10, 40, disposal) + chunk(b"fdAT", struct.pack(">I", 4) + square),
    ]
    return start[:-12] + b"".join(frames) + start[-12:]


@pytest.mark.parametrize(
    ("data", "stays"),
    [
        (moving_square_gif(1), True),
        (moving_square_gif(3), False),
        (moving_square_png(0), True),
        (moving_square_png(2), False),
    ],
)
def test_frames_are_composed_with_their_disposal(data, stays):
    """A small square moves over the picture: it stays, or is undone after its frame."""
    *_, last = decode(data).frames
    assert near(last.getpixel((45, 5)), RED)
    assert near(last.getpixel((25, 5)), RED if stays else WHITE)
    assert near(last.getpixel((5, 15)), WHITE)


def test_transparent_animation():
    frames = [written(WHITE), ImageOps.mirror(written(WHITE))]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    decoded = decode(data)
    assert (decoded.sampled_frames, len(decoded.frames)) == (2, 4)
    assert [contrast(f) > 100 for f in decoded.frames] == [False, True] * 2


@pytest.mark.usefixtures("no_garbage_collection")
def test_of_thousands_of_whole_frames_only_the_sampled_ones_are_decoded(monkeypatch):
    head = b"GIF89a\x04\0\x04\0\x80\0\0" + bytes([*RED, *BLUE])
    picture = b",\0\0\0\0\x04\0\x04\0\0\x02\x05\x84\x8f\xa9\xcb\x5d\0"
    count = 5000
    opened, open_image = [], Image.open

    def counted(*arguments, **options):
        opened.append(arguments)
        return open_image(*arguments, **options)

    monkeypatch.setattr(Image, "open", counted)
    started = time.process_time()
    decoded = decode(head + picture * count + b";")
    assert (decoded.total_frames, decoded.sampled_frames, decoded.unseen_frames) == (count, 3, count - 3)
    assert len(opened) == 3
    assert time.process_time() - started < 2


def frames_of(count: int, size: tuple[int, int], **options) -> Picture:
    layer = Layer(0, 0, *size, (), 100.0, **options)
    return Picture("GIF", *size, 16, (layer,) * count, count)


def test_sampling_is_bounded_by_frames_and_pixels_that_stand_on_each_other():
    assert sampling.sampled(frames_of(5000, (4, 4)), 3) == [0, 438, 937]
    assert sampling.sampled(frames_of(300, (1000, 500)), 3) == [0, 88, 187]
    assert sampling.sampled(frames_of(300, (9000, 9000)), 3) == [0]
    assert sampling.sampled(frames_of(300, (1000, 500), opaque=True), 3) == [0, 131, 281]
    assert sampling.sampled(frames_of(2, (10, 10)), 3) == [0, 1]
    assert sampling.sampled(frames_of(7, (10, 10)), 1) == [0]


def test_an_animation_without_the_frames_that_it_declares():
    data = animated("PNG", [RED, GREEN, BLUE])
    at = data.index(b"acTL")
    lying = chunk(b"acTL", struct.pack(">II", 50, 0))
    with pytest.raises(InvalidImage):
        decode(data[: at - 4] + lying + data[at + 16 :])


def test_a_frame_that_outgrows_the_screen_of_its_gif():
    """Pillow enlarges the picture by any frame, long after the header's size was checked."""
    head = b"GIF89a\x04\0\x04\0\x80\0\0" + bytes([*RED, *BLUE])
    picture = b",\0\0\0\0\x04\0\x04\0\0\x02\x05\x84\x8f\xa9\xcb\x5d\0"
    huge = b"!\xf9\x04\x08\0\0\0\0," + struct.pack("<HHHH", 0, 0, 12000, 12000) + b"\0\x02\x01\x05\0"
    with pytest.raises(ImageTooLarge, match="pixels"):
        decode(head + picture + huge + picture + b";")


# --- Size ------------------------------------------------------------------------------------------------


def test_small_pictures_are_left_alone():
    image = noise(1300, 1300)
    assert frame(encoded(image)).tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((4000, 3000), (1344, 1008)),
        ((3000, 4000), (1008, 1344)),
        ((1344, 1344), (1344, 1344)),
        ((1345, 1345), (1344, 1344)),
        ((5376, 336), (5376, 336)),
        ((1, 60000), (1, 5376)),
        ((1500, 9000), (447, 2688)),
        ((100, 5000), (100, 5000)),
    ],
)
def test_canvas(size, expected):
    assert SIZES.shrunk(*size) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1920, 1080), (1920, 1080)),
        ((1920, 1200), (1920, 1200)),
        ((1920, 1201), (1611, 1008)),
        ((5376, 400), (5376, 400)),
        ((5377, 400), (4516, 336)),
        ((4, 60000), (4, 5376)),
    ],
)
def test_a_picture_hardly_larger_than_the_canvas_is_not_shrunk(size, expected):
    """The engine's own resize is faster; longer sides would let thin pictures take many times the memory."""
    assert frame(encoded(Image.new("RGB", size, RED))).size == expected


async def test_pictures_are_as_large_as_the_model_can_use_them():
    """Nothing about Llama 4's sizes is known here: another model's are taken as they are given."""
    small = PictureSizes(most_pixels=1000, longest_side=100, shrunk=lambda width, height: (width // 50, height // 50))
    decoder = ImageDecoder(LIMITS, small)
    opaque = part(encoded(Image.new("RGB", (2000, 1500), RED)))
    glyphs = noise(100, 100).convert("RGBA")
    glyphs.putalpha(noise(100, 100).convert("L"))
    (shown,), both = [image.frames for image in await decoder.decode([opaque, part(encoded(glyphs))])]
    decoder.close()
    assert shown.size == (40, 30)
    assert [one.size for one in both] == [(22, 22), (22, 22)], "two renderings have the pixels of the largest picture"


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "1", "P", "CMYK"])
@pytest.mark.parametrize("size", [(2100, 1777), (3001, 900), (700, 6001)])
def test_bands_have_no_seams(mode, size):
    """Resized band by band or whole: the same picture."""
    image = noise(*size)
    if mode == "RGBA":
        image.putalpha(noise(*size).convert("L"))
    image = image.convert(mode)
    target = SIZES.shrunk(*size)
    whole = seen.in_eight_bits(image).resize(target, Image.Resampling.BILINEAR)
    whole = whole if mode == "RGBA" else whole.convert("RGB")
    banded = seen.resized(image, Colours((), image.mode), target)
    assert (banded.mode, banded.size) == (whole.mode, whole.size)
    if mode == "RGBA":  # Colours that are hardly visible are hardly defined.
        whole, banded = whole.convert("RGBa"), banded.convert("RGBa")
    assert np.abs(np.asarray(banded).astype(int) - np.asarray(whole)).max() <= 2


def test_a_large_jpeg_looks_the_same_in_draft_mode():
    image = noise(4100, 3075)
    data = encoded(image, "JPEG", quality=95)
    full = Image.open(io.BytesIO(data)).convert("RGB").resize((1344, 1008), Image.Resampling.BILINEAR)
    difference = np.abs(np.asarray(frame(data)).astype(int) - np.asarray(full))
    assert difference.mean() < 2


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 3), (1, 3), (3, 60000), (2, 2)])
def test_extremely_small_and_thin_images(size):
    shown = frame(encoded(Image.new("RGB", size, RED)))
    assert min(shown.size) >= 4
    assert max(shown.size) <= 5376
    assert shown.getextrema() == ((255, 255), (0, 0), (0, 0))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(4000, 3000), (1700, 1700), (3000, 800), (1500, 9000), (2999, 1501)])
def test_the_processor_sees_what_it_would_have_seen(size):
    """Llama 4's own processor makes the same tiles of the shrunk picture as of the whole one."""
    try:
        from transformers.models.llama4.image_processing_llama4 import Llama4ImageProcessor
    except (ImportError, RuntimeError, OSError):
        pytest.skip("transformers with torchvision is needed")
    process = Llama4ImageProcessor()
    image = noise(*size)
    whole, shrunk = (
        process(images=[picture], return_tensors="pt")["pixel_values"].float().numpy()
        for picture in (image, frame(encoded(image)))
    )
    assert whole.shape == shrunk.shape
    difference = np.abs(whole - shrunk) * 127.5
    *tiles, overview = difference
    assert max((tile.max() for tile in tiles), default=0) <= 2
    # The overview at 336 x 336 has been resized twice.
    assert overview.mean() < 2
