"""The form of a file upload, read within limits."""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Literal

from fastapi import Request
from pydantic import Field
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from server.api.http.encoding import encoding_of
from server.api.wire import WireModel
from server.domain.errors import InvalidRequest, RequestTimeout, RequestTooLarge, StoreUnavailable, UnsupportedEncoding
from server.settings import Settings
from server.store.files import CHUNK_BYTES

INPUT_EXPIRES_AFTER_S = 30 * 24 * 60 * 60
"""As at OpenAI, files that callers uploaded are deleted after 30 days. Files that batches wrote stay."""

LEAST_PACE = 64 * 1024
"""Bytes that must arrive in each second, after one deadline: whoever sends slower holds the place of another."""

_FORM_BYTES = 64 * 1024
"""Room for everything in the form except the file."""

_EXPIRES_AFTER = re.compile(r"expires_after\[(anchor|seconds)\]")
_NAME_LENGTH = 500


class ExpiresAfter(WireModel):
    """When a file is deleted: `seconds` after it was created, from one hour to 30 days."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=INPUT_EXPIRES_AFTER_S)


class FileForm(WireModel):
    """The fields of an upload, without the file."""

    purpose: Literal["batch"] = Field(description="Only `batch`: only batches read files here.")
    expires_after: ExpiresAfter | None = None


FORM_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": ["batch"]},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
                    },
                }
            }
        },
    }
}
"""`openapi_extra` of the upload route."""


@contextlib.asynccontextmanager
async def form_of(request: Request, settings: Settings) -> AsyncIterator[FormData]:
    """The form. Its file is a temporary one, deleted at the end of the block."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise InvalidRequest("Send the file as multipart/form-data.")
    parser = MultiPartParser(
        request.headers, _bounded(request, settings), max_files=1, max_fields=8, max_part_size=1024
    )
    try:
        form = await parser.parse()
    except (MultiPartException, UnicodeError):  # a charset such as `undefined` raises UnicodeError
        raise InvalidRequest("The body is not valid multipart/form-data.") from None
    except OSError:
        raise StoreUnavailable("The server has no disk space left for the upload. Try again later.") from None
    try:
        yield form
    finally:
        await form.close()


async def _bounded(request: Request, settings: Settings) -> AsyncGenerator[bytes, None]:
    """The body. Raises RequestTooLarge, RequestTimeout if it comes too slowly, and UnsupportedEncoding."""
    if encoding_of(request.scope["headers"]) is not None:
        raise UnsupportedEncoding("Send the file without compression: leave out the header Content-Encoding.")
    limit = settings.max_file_bytes + _FORM_BYTES
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise too_large(settings)
    received, patience = 0, asyncio.get_running_loop().time() + settings.deadline
    stream = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout_at(patience + received / LEAST_PACE):
                piece = await anext(stream, None)
        except TimeoutError:
            raise RequestTimeout(
                f"The upload came at less than {LEAST_PACE} bytes a second for {settings.deadline:g} seconds. Send the"
                " file again, or in smaller files."
            ) from None
        if piece is None:
            return
        received += len(piece)
        if received > limit:
            raise too_large(settings)
        yield piece


def too_large(settings: Settings) -> RequestTooLarge:
    message = (
        f"The file is larger than {settings.max_file_bytes} bytes. Split it into several files. The operator sets the"
        " limit with"
        " GUARD_MAX_FILE_BYTES."
    )
    return RequestTooLarge(message, param="file")


def fields_of(form: FormData) -> tuple[dict[str, Any], UploadFile | None]:
    """The fields as a JSON document, and the file. Raises InvalidRequest."""
    document: dict[str, Any] = {}
    file: UploadFile | None = None
    if len(form.multi_items()) != len(form):
        raise InvalidRequest("The form has the same field twice. Send each field once.")
    for name, value in form.multi_items():
        expires_after = _EXPIRES_AFTER.fullmatch(name)
        if isinstance(value, UploadFile):
            if name != "file":
                raise InvalidRequest("The file must be in the field 'file'.", param="file")
            file = value
        elif expires_after:
            number = int(value) if expires_after[1] == "seconds" and re.fullmatch(r"[0-9]{1,9}", value) else value
            document.setdefault("expires_after", {})[expires_after[1]] = number
        elif name == "file":
            raise InvalidRequest("The field 'file' must be a file with a name.", param="file")
        elif name == "expires_after":
            raise InvalidRequest(
                "Send 'expires_after' as two fields: 'expires_after[anchor]' and 'expires_after[seconds]'.",
                param="expires_after",
            )
        else:
            document[name] = value
    return document, file


def name_of(filename: str | None) -> str:
    """The file's name in lists, without characters that could harm a terminal or a database."""
    name = "".join(character if character.isprintable() else "_" for character in filename or "")
    return name[:_NAME_LENGTH] or "upload"


async def pieces_of(file: UploadFile) -> AsyncIterator[bytes]:
    while piece := await file.read(CHUNK_BYTES):
        yield piece
