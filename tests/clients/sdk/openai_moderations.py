"""openai: moderations of every form of input, held to the SDK's own types."""

import base64
import os
import struct
import zlib
from typing import Any

from openai import OpenAI

SAFE, UNSAFE = os.environ["SAFE"], os.environ["UNSAFE"]
client = OpenAI(
    base_url=os.environ["GUARD_URL"] + "/v1", api_key=os.environ["GUARD_KEY"], _strict_response_validation=True
)


def picture() -> str:
    """A white PNG of 8 by 8 pixels, as a data: URL."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\xff" * 24) * 8)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(png).decode()


one = client.moderations.create(input=UNSAFE)
assert one.id.startswith("modr-")
assert one.results[0].flagged
assert one.results[0].categories.illicit_violent
assert one.results[0].category_scores.illicit_violent > 0.5
assert one.results[0].category_applied_input_types.illicit_violent == ["text"]
assert one.results[0].model_dump()["guard"]["verdict"] == "unsafe"

safe = client.moderations.create(input=SAFE, model="omni-moderation-latest").results[0]
assert not safe.flagged
assert not any(safe.categories.model_dump().values())
assert all(0 <= score < 0.5 for score in safe.category_scores.model_dump().values())

several = client.moderations.create(input=[SAFE, UNSAFE, SAFE], model="text-moderation-stable")
assert [result.flagged for result in several.results] == [False, True, False]

parts: list[Any] = [{"type": "text", "text": UNSAFE}, {"type": "image_url", "image_url": {"url": picture()}}]
together = client.moderations.create(input=parts, model="omni-moderation-2024-09-26")
assert [result.flagged for result in together.results] == [True]
assert together.results[0].model_dump()["guard"]["usage"]["images"] == 1

raw = client.moderations.with_raw_response.create(input=SAFE)
assert raw.headers["x-request-id"] == raw.request_id
assert int(raw.headers["openai-processing-ms"]) >= 0
