"""/v1/files: what is uploaded comes back, to its owner alone, and nothing odd gets in."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from server.api.openai.files import UPLOADS_AT_ONCE, Uploads
from server.api.openai.upload import INPUT_EXPIRES_AFTER_S
from tests.api.conftest import As, LiveServer
from tests.api.shapes import error_of, obeys_openai

CONTENT = b'{"custom_id": "1"}\n\xff\x00\n'


async def upload(client: httpx.AsyncClient, content: bytes = CONTENT, **fields: str) -> dict[str, Any]:
    response = await client.post(
        "/v1/files", data={"purpose": "batch", **fields}, files={"file": ("rows.jsonl", content)}
    )
    assert response.status_code == 200, response.text
    document: dict[str, Any] = response.json()
    return document


async def test_a_file_comes_back_as_it_was_sent(client: httpx.AsyncClient) -> None:
    file = await upload(client)
    obeys_openai(file, "OpenAIFile")
    assert (file["bytes"], file["filename"], file["purpose"]) == (len(CONTENT), "rows.jsonl", "batch")
    assert file["expires_at"] - file["created_at"] == INPUT_EXPIRES_AFTER_S
    assert (await client.get(f"/v1/files/{file['id']}")).json() == file
    content = await client.get(f"/v1/files/{file['id']}/content")
    assert content.content == CONTENT
    assert content.headers["content-type"] == "application/octet-stream"
    assert content.headers["x-content-type-options"] == "nosniff"


async def test_a_file_may_expire_when_its_owner_says(client: httpx.AsyncClient) -> None:
    expiry = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file = await upload(client, CONTENT, **expiry)
    assert file["expires_at"] - file["created_at"] == 3600


async def test_a_deleted_file_is_gone(client: httpx.AsyncClient) -> None:
    file = await upload(client)
    deleted = (await client.delete(f"/v1/files/{file['id']}")).json()
    obeys_openai(deleted, "DeleteFileResponse")
    assert deleted == {"id": file["id"], "object": "file", "deleted": True}
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        error_of(await client.request(method, f"/v1/files/{file['id']}{path}"), 404, param="id", code="not_found")


async def test_lists_page(client: httpx.AsyncClient) -> None:
    made = [(await upload(client, str(index).encode()))["id"] for index in range(5)]
    first = (await client.get("/v1/files", params={"limit": 3})).json()
    obeys_openai(first, "ListFilesResponse")
    assert [file["id"] for file in first["data"]] == made[:1:-1]
    assert (first["has_more"], first["first_id"], first["last_id"]) == (True, made[4], made[2])
    rest = (await client.get("/v1/files", params={"limit": 3, "after": first["last_id"]})).json()
    assert ([file["id"] for file in rest["data"]], rest["has_more"]) == (made[1::-1], False)
    ascending = (await client.get("/v1/files", params={"order": "asc", "purpose": "batch"})).json()
    assert [file["id"] for file in ascending["data"]] == made


@pytest.mark.parametrize("purpose", ["batch_output", "assistants", "nonsense"])
async def test_a_list_of_nothing(client: httpx.AsyncClient, purpose: str) -> None:
    await upload(client)
    found = (await client.get("/v1/files", params={"purpose": purpose})).json()
    obeys_openai(found, "ListFilesResponse")
    assert (found["data"], found["has_more"]) == ([], False)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=10001", "limit"),
        ("limit=zebra", "limit"),
        ("order=zebra", "order"),
        ("after=zebra", "after"),
        ("after=file-%00", "after"),
        ("after=", "after"),
    ],
)
async def test_a_wrong_query_is_named(client: httpx.AsyncClient, query: str, param: str) -> None:
    assert "zebra" not in error_of(await client.get(f"/v1/files?{query}"), 400, param=param)["message"]


# --- Forms that are refused ------------------------------------------------------------------------------

FORMS: dict[str, tuple[dict[str, Any], str | None]] = {
    "no file": ({"data": {"purpose": "batch"}, "files": {}}, None),
    "no purpose": ({"files": {"file": ("a", b"x")}}, "purpose"),
    "another purpose": ({"data": {"purpose": "fine-tune"}, "files": {"file": ("a", b"x")}}, "purpose"),
    "our purpose": ({"data": {"purpose": "batch_output"}, "files": {"file": ("a", b"x")}}, "purpose"),
    "an unknown field": ({"data": {"purpose": "batch", "zebra": "1"}, "files": {"file": ("a", b"x")}}, "zebra"),
    "a file elsewhere": ({"data": {"purpose": "batch"}, "files": {"zebra": ("a", b"x")}}, "file"),
    "two files": ({"data": {"purpose": "batch"}, "files": [("file", ("a", b"x")), ("file", ("b", b"x"))]}, None),
    "a purpose twice": ({"data": {"purpose": ["batch", "batch"]}, "files": {"file": ("a", b"x")}}, None),
    "half an expiry": (
        {"data": {"purpose": "batch", "expires_after[seconds]": "3600"}, "files": {"file": ("a", b"x")}},
        "expires_after.anchor",
    ),
    "too short an expiry": (
        {
            "data": {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"},
            "files": {"file": ("a", b"x")},
        },
        "expires_after.seconds",
    ),
    "an expiry of no number": (
        {
            "data": {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "inf"},
            "files": {"file": ("a", b"x")},
        },
        "expires_after.seconds",
    ),
    "an expiry in one": (
        {"data": {"purpose": "batch", "expires_after": "3600"}, "files": {"file": ("a", b"x")}},
        "expires_after",
    ),
    "json": ({"json": {"purpose": "batch", "file": "x"}}, None),
    "a form without boundary": ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, None),
    "a form of rubbish": (
        {"content": b"zebra", "headers": {"content-type": "multipart/form-data; boundary=x"}},
        None,
    ),
    "a charset that is none": (
        {
            "content": b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x--\r\n',
            "headers": {"content-type": "multipart/form-data; boundary=x; charset=undefined"},
        },
        None,
    ),
    "a long field": ({"data": {"purpose": "zebra" * 1000}, "files": {"file": ("a", b"x")}}, None),
}


@pytest.mark.parametrize("name", FORMS)
async def test_a_wrong_form_is_refused(client: httpx.AsyncClient, name: str) -> None:
    request, param = FORMS[name]
    error = error_of(await client.post("/v1/files", **request), 400, param=param)
    assert "zebra" not in error["message"] or param == "zebra"
    assert (await client.get("/v1/files")).json()["data"] == []


@pytest.mark.parametrize("settings", [{"max_file_bytes": 10_000}], indirect=True)
@pytest.mark.parametrize(("size", "status"), [(10_000, 200), (10_001, 413), (500_000, 413)])
async def test_the_largest_file(client: httpx.AsyncClient, size: int, status: int) -> None:
    response = await client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a", b"x" * size)})
    assert response.status_code == status
    if status == 413:
        error_of(response, 413, code="request_too_large", param="file")


@pytest.mark.parametrize("settings", [{"max_file_bytes": 10_000}], indirect=True)
async def test_a_file_of_no_announced_size_is_bounded_while_it_arrives(client: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(1000):
            sent += 10_000
            yield b"x" * 10_000

    headers = {"content-type": "multipart/form-data; boundary=x"}
    error_of(await client.post("/v1/files", content=endless(), headers=headers), 413, code="request_too_large")


@pytest.mark.parametrize("settings", [{"deadline": 0.2}], indirect=True)
async def test_an_upload_that_stops_arriving_is_not_waited_for(client: httpx.AsyncClient) -> None:
    async def stalling() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx'
        await asyncio.sleep(5)

    headers = {"content-type": "multipart/form-data; boundary=x"}
    error_of(await client.post("/v1/files", content=stalling(), headers=headers), 408, code="request_timeout")


async def test_only_so_many_uploads_at_once(client: httpx.AsyncClient, app: FastAPI) -> None:
    uploads = app.state.served.kept(Uploads)
    for _ in range(UPLOADS_AT_ONCE // 2):
        assert uploads.take("127.0.0.1", 1)
    refused = await client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a", b"x")})
    error_of(refused, 429, code="rate_limit_exceeded")
    assert uploads.take("10.0.0.1", 1), "another caller has room"
    uploads.give_back("127.0.0.1", 1)
    uploads.give_back("127.0.0.1", 1)
    await upload(client)


@pytest.mark.parametrize(
    ("filename", "shown"),
    [
        ("zeilen ü.jsonl", "zeilen ü.jsonl"),
        ("x" * 900, "x" * 500),
        ("../../etc/passwd", "../../etc/passwd"),
    ],
)
async def test_odd_names(client: httpx.AsyncClient, filename: str, shown: str) -> None:
    response = await client.post("/v1/files", data={"purpose": "batch"}, files={"file": (filename, b"x")})
    assert response.json()["filename"] == shown


async def test_a_charset_cannot_smuggle_a_broken_name_in(client: httpx.AsyncClient) -> None:
    for charset in ("unicode_escape", "utf-7", "utf-16-le", "punycode", "rot13", "zebra"):
        body = (
            b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="\\ud800\\x00+2AA-"\r\n\r\nx\r\n--x--\r\n'
        )
        headers = {"content-type": f"multipart/form-data; boundary=x; charset={charset}"}
        response = await client.post("/v1/files", content=body, headers=headers)
        assert response.status_code in (200, 400), response.text


# --- Owners ----------------------------------------------------------------------------------------------


async def test_another_callers_file_is_not_there(client: httpx.AsyncClient, be: As) -> None:
    be("key_anna")
    file = await upload(client)
    be("key_bert")
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        error_of(await client.request(method, f"/v1/files/{file['id']}{path}"), 404, code="not_found")
    assert (await client.get("/v1/files")).json()["data"] == []
    be("key_anna")
    assert (await client.get(f"/v1/files/{file['id']}/content")).content == CONTENT


def test_an_upload_whose_client_leaves_is_not_kept(live: LiveServer) -> None:
    import socket

    head = "POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    with socket.create_connection(("127.0.0.1", live.port)) as connection:
        connection.sendall(f"{head}Content-Length: 100000\r\n\r\n--x\r\n".encode())
    with live.client() as client:
        assert client.get("/v1/files").json()["data"] == []
        assert client.get("/health").status_code == 200
