"""/v1/files in OpenAI's dialect: what batches read and write."""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Annotated, Any, Literal, NotRequired

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import Field
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from server.api.http.body import validate
from server.api.http.description import TOO_LARGE, Responses, reply
from server.api.http.shapes import Closed, Count, Moment
from server.api.http.state import caller_of, served
from server.api.messages import WireModel
from server.api.openai import examples
from server.domain.errors import (
    InvalidRequest,
    Overloaded,
    RequestTimeout,
    RequestTooLarge,
    StoreUnavailable,
)
from server.settings import Settings
from server.store import files
from server.store.files import Files, StoredFile
from server.store.ids import Kind, is_id

router = APIRouter(prefix="/v1", tags=["files"])

UPLOADS_AT_ONCE = 4
"""Each may need as much room in the folder of temporary files as the largest file."""

INPUT_EXPIRES_AFTER_S = 30 * 24 * 60 * 60
"""As at OpenAI: what was uploaded for batches goes after 30 days, what they wrote stays."""

_FORM_BYTES = 64 * 1024
"""Room for all of a form that is not the file."""

_EXPIRES_AFTER = re.compile(r"expires_after\[(anchor|seconds)\]")
_NAME_LENGTH = 500


class Uploads(asyncio.Semaphore):
    """The turns of uploads."""

    def __init__(self) -> None:
        super().__init__(UPLOADS_AT_ONCE)


class ExpiresAfter(WireModel):
    """When a file is deleted: so many seconds after it was made, an hour to 30 days."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=INPUT_EXPIRES_AFTER_S)


class FileForm(WireModel):
    """The fields of an upload beside the file."""

    purpose: Literal["batch"] = Field(description="Only `batch`: nothing else here reads files.")
    expires_after: ExpiresAfter | None = None


class File(Closed):
    id: str
    object: Literal["file"]
    bytes: Count
    created_at: Moment
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"]
    expires_at: NotRequired[Moment]


class Page(Closed):
    object: Literal["list"]
    first_id: str
    last_id: str
    has_more: bool


class FileList(Page):
    """The ids are empty texts where the page is empty."""

    data: list[File]


class FileDeleted(Closed):
    id: str
    object: Literal["file"]
    deleted: Literal[True]


_UPLOAD = {
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

FILE_RESPONSES: Responses = {200: reply(File, "The file", examples.FILE), **examples.STORE_ERRORS}


@router.post(
    "/files",
    summary="Upload a file for batches",
    openapi_extra=_UPLOAD,
    responses={**FILE_RESPONSES, **TOO_LARGE},
)
async def upload(request: Request) -> JSONResponse:
    settings = served(request).settings
    turns = served(request).kept(Uploads)
    if turns.locked():
        raise Overloaded("The server is busy with too many uploads.", retry_after=1)
    async with turns, _form(request, settings) as form:
        document, file = _fields(form)
        options = validate(document, FileForm)
        if file is None:
            raise InvalidRequest("Missing required parameter: 'file'.", param="file")
        if (file.size or 0) > settings.max_file_bytes:
            raise _too_large(settings)
        expires_after = options.expires_after.seconds if options.expires_after else INPUT_EXPIRES_AFTER_S
        stored = await _files(request).add(
            owner(request), files.INPUT, _name(file.filename), _pieces(file), expires_after
        )
    return JSONResponse(_document(stored))


@router.get(
    "/files",
    summary="List files",
    responses={200: reply(FileList, "A page of files", examples.page(examples.FILE)), **examples.STORE_ERRORS},
)
async def list_files(
    request: Request,
    purpose: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> JSONResponse:
    check_cursor(Kind.FILE, after)
    if purpose not in (None, files.INPUT, files.OUTPUT):
        return _listed([], more=False)
    page, more = await _files(request).page(
        owner(request), purpose=purpose, after=after, limit=limit, newest_first=order == "desc"
    )
    return _listed(page, more=more)


@router.get(
    "/files/{file_id}",
    summary="Look a file up",
    responses=FILE_RESPONSES,
)
async def get_file(request: Request, file_id: str) -> JSONResponse:
    return JSONResponse(_document(await _files(request).get(owner(request), file_id)))


@router.delete(
    "/files/{file_id}",
    summary="Delete a file that no batch reads any more",
    responses={
        200: reply(FileDeleted, "It is gone", {"id": examples.FILE["id"], "object": "file", "deleted": True}),
        **examples.STORE_ERRORS,
    },
)
async def delete_file(request: Request, file_id: str) -> JSONResponse:
    await _files(request).delete(owner(request), file_id)
    document: FileDeleted = {"id": file_id, "object": "file", "deleted": True}
    return JSONResponse(document)


@router.get(
    "/files/{file_id}/content",
    summary="Read a file",
    response_class=StreamingResponse,
    responses={
        200: {"description": "The bytes of the file", "content": {"application/octet-stream": {}}},
        **examples.STORE_ERRORS,
    },
)
async def get_content(request: Request, file_id: str) -> StreamingResponse:
    stored = await _files(request).get(owner(request), file_id)
    # Whoever uploaded it chose what is in it: no browser may take it for a page.
    headers = {"content-length": str(stored.bytes), "x-content-type-options": "nosniff"}
    content = _files(request).content(stored.id)
    return StreamingResponse(content, headers=headers, media_type="application/octet-stream")


# --- What lists and owners have in common with batches ----------------------------------------------------


def owner(request: Request) -> str:
    return caller_of(request).owner


def check_cursor(kind: Kind, after: str | None) -> None:
    """Raises InvalidRequest for what cannot be the id of an entry of the list."""
    if after is not None and not is_id(kind, after):
        raise InvalidRequest("Invalid value for 'after': it is no id of this list.", param="after")


def page_of(ids: Sequence[str], *, more: bool) -> Page:
    """What stands around the entries of a list."""
    # OpenAI's clients want strings here, also of a list that has no first entry.
    first, last = (ids[0], ids[-1]) if ids else ("", "")
    return {"object": "list", "first_id": first, "last_id": last, "has_more": more}


def _files(request: Request) -> Files:
    return Files(served(request).database)


def _listed(page: Sequence[StoredFile], *, more: bool) -> JSONResponse:
    data = [_document(file) for file in page]
    document: FileList = {**page_of([file["id"] for file in data], more=more), "data": data}
    return JSONResponse(document)


def _document(file: StoredFile) -> File:
    document: File = {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "filename": file.filename,
        "purpose": "batch" if file.purpose == files.INPUT else "batch_output",
        "status": "processed",
    }
    if file.expires_at is not None:
        document["expires_at"] = file.expires_at
    return document


# --- The form --------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _form(request: Request, settings: Settings) -> AsyncIterator[FormData]:
    """The form with its file in a temporary one, deleted at the end of the block."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise InvalidRequest("An upload must be multipart/form-data.")
    parser = MultiPartParser(
        request.headers, _bounded(request, settings), max_files=1, max_fields=8, max_part_size=1024
    )
    try:
        form = await parser.parse()
    except (MultiPartException, UnicodeError):  # the latter of a charset such as `undefined`
        raise InvalidRequest("The form cannot be read.") from None
    except OSError:
        raise StoreUnavailable("The server has no room for the upload.") from None
    try:
        yield form
    finally:
        await form.close()


async def _bounded(request: Request, settings: Settings) -> AsyncGenerator[bytes, None]:
    """The body. Raises RequestTooLarge, and RequestTimeout when nothing comes for as long as a deadline."""
    limit = settings.max_file_bytes + _FORM_BYTES
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise _too_large(settings)
    received = 0
    stream = aiter(request.stream())
    while True:
        try:
            async with asyncio.timeout(settings.deadline):
                piece = await anext(stream, None)
        except TimeoutError:
            raise RequestTimeout("The upload stopped arriving.") from None
        if piece is None:
            return
        received += len(piece)
        if received > limit:
            raise _too_large(settings)
        yield piece


def _too_large(settings: Settings) -> RequestTooLarge:
    return RequestTooLarge(f"The file is larger than {settings.max_file_bytes} bytes.", param="file")


def _fields(form: FormData) -> tuple[dict[str, Any], UploadFile | None]:
    """The fields as a JSON document would have them, and the file. Raises InvalidRequest."""
    document: dict[str, Any] = {}
    file: UploadFile | None = None
    if len(form.multi_items()) != len(form):
        raise InvalidRequest("The form holds the same field twice.")
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
            raise InvalidRequest("Write 'expires_after[anchor]' and 'expires_after[seconds]'.", param="expires_after")
        else:
            document[name] = value
    return document, file


def _name(filename: str | None) -> str:
    """What a file is called in lists: without what no terminal or database should see."""
    name = "".join(character if character.isprintable() else "_" for character in filename or "")
    return name[:_NAME_LENGTH] or "upload"


async def _pieces(file: UploadFile) -> AsyncIterator[bytes]:
    while piece := await file.read(files.CHUNK_BYTES):
        yield piece
