"""/v1/files in OpenAI's dialect: the files that batches read and write."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, NotRequired

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, StreamingResponse

from server.api.http.body import validate
from server.api.http.budget import FairShare
from server.api.http.description import TOO_LARGE, Responses, reply
from server.api.http.shapes import Closed, Count, Moment
from server.api.http.state import caller_of, served, state_of
from server.api.openai import examples
from server.api.openai.upload import (
    FORM_BODY,
    INPUT_EXPIRES_AFTER_S,
    FileForm,
    fields_of,
    form_of,
    name_of,
    pieces_of,
    too_large,
)
from server.domain.errors import InvalidRequest, Overloaded
from server.store import files
from server.store.files import Files, StoredFile
from server.store.ids import Kind, is_id

router = APIRouter(prefix="/v1", tags=["files"])

UPLOADS_AT_ONCE = 8
"""Each may need as much room in the folder of temporary files as the largest file. One caller gets half of them."""


class Uploads(FairShare):
    """Limits the uploads at one time."""

    def __init__(self) -> None:
        super().__init__(UPLOADS_AT_ONCE)


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
    """The ids are empty strings if the page is empty."""

    data: list[File]


class FileDeleted(Closed):
    id: str
    object: Literal["file"]
    deleted: Literal[True]


FILE_RESPONSES: Responses = {200: reply(File, "The file", examples.FILE), **examples.STORE_ERRORS}


@router.post(
    "/files",
    summary="Upload a file for batches",
    openapi_extra=FORM_BODY,
    responses={**FILE_RESPONSES, **TOO_LARGE},
)
async def upload(request: Request) -> JSONResponse:
    settings = served(request).settings
    with _turn(request):
        async with form_of(request, settings) as form:
            document, file = fields_of(form)
            options = validate(document, FileForm)
            if file is None:
                raise InvalidRequest("Missing required parameter: 'file'.", param="file")
            if (file.size or 0) > settings.max_file_bytes:
                raise too_large(settings)
            expires_after = options.expires_after.seconds if options.expires_after else INPUT_EXPIRES_AFTER_S
            stored = await _files(request).add(
                owner(request),
                files.INPUT,
                name_of(file.filename),
                pieces_of(file),
                min(expires_after, settings.retention),
                most_bytes=settings.max_stored_bytes,
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
    summary="Get the facts of a file",
    responses=FILE_RESPONSES,
)
async def get_file(request: Request, file_id: str) -> JSONResponse:
    return JSONResponse(_document(await _files(request).get(owner(request), file_id)))


@router.delete(
    "/files/{file_id}",
    summary="Delete a file that no batch still reads",
    responses={
        200: reply(FileDeleted, "The file is deleted", {"id": examples.FILE["id"], "object": "file", "deleted": True}),
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
    # The caller chose what is in the file: no browser may show it as a page.
    headers = {"content-length": str(stored.bytes), "x-content-type-options": "nosniff"}
    content = _files(request).content(stored.id)
    return StreamingResponse(content, headers=headers, media_type="application/octet-stream")


@contextlib.contextmanager
def _turn(request: Request) -> Iterator[None]:
    """One of the uploads at one time. Raises Overloaded."""
    uploads, holder = served(request).kept(Uploads), state_of(request).holder
    if not uploads.take(holder, 1):
        raise Overloaded("Too many files are being uploaded at the moment. Try again in a second.", retry_after=1)
    try:
        yield
    finally:
        uploads.give_back(holder, 1)


# --- Lists and owners, for files and batches --------------------------------------------------------------


def owner(request: Request) -> str:
    return caller_of(request).owner


def check_cursor(kind: Kind, after: str | None) -> None:
    """Raises InvalidRequest if `after` cannot be the id of an entry of the list."""
    if after is not None and not is_id(kind, after):
        raise InvalidRequest("Invalid value for 'after': it must be the id of an entry of this list.", param="after")


def page_of(ids: Sequence[str], *, more: bool) -> Page:
    """The fields around the entries of a list."""
    # OpenAI's clients want strings here, even for an empty list.
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
