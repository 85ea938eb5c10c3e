"""A browser on the same machine is no way in: who may ask a server without keys, by name and by origin."""

import httpx
import pytest

from server.api.http.hosts import Hosts
from server.domain.errors import CrossSite, ForeignHost
from tests.api.shapes import error_of
from tests.fakes import FakeBackend

HOME = ["127.0.0.1", "127.0.0.1:8000", "localhost", "LocalHost:1", "localhost.", "[::1]", "[::1]:8000", "127.8.8.8:80"]
FOREIGN = [
    "evil.example",
    "evil.example:8000",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "evil.example@127.0.0.1",
    "127.0.0.1/evil",
    "0.0.0.0",
    "10.0.0.1",
    "169.254.169.254",
    "[::]",
    "[fe80::1]",
    "2130706433",
    "0x7f.1",
    "127.1",
    "a, localhost",
    "localhost:8000:9000",
    "",
    "[::1",
    "xn--localhost",
    "łocalhost",
]


def headers(**values: str) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").encode(), value.encode()) for name, value in values.items()]


@pytest.mark.parametrize("host", HOME)
def test_without_keys_the_names_of_loopback_are_served(host: str) -> None:
    Hosts((), needs_keys=False).check(headers(host=host))


@pytest.mark.parametrize("host", FOREIGN)
def test_without_keys_no_other_name_is_served(host: str) -> None:
    with pytest.raises(ForeignHost):
        Hosts(("guard.internal",), needs_keys=False).check(headers(host=host))


def test_other_names_are_served_if_the_operator_lists_them() -> None:
    hosts = Hosts(("guard.internal", "10.0.0.1", "::2"), needs_keys=False)
    for host in (*HOME, "guard.internal", "GUARD.internal:8000", "guard.internal.", "10.0.0.1:80", "[::2]:80"):
        hosts.check(headers(host=host))
    Hosts(("*",), needs_keys=False).check(headers(host="any.example"))


def test_with_keys_every_name_is_served_unless_some_are_listed() -> None:
    Hosts((), needs_keys=True).check(headers(host="any.example", origin="https://evil.example"))
    with pytest.raises(ForeignHost):
        Hosts(("guard.internal",), needs_keys=True).check(headers(host="any.example"))


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "https://evil.example",
        "http://localhost",
        "http://localhost:3000",
        "http://127.0.0.1:8000",
        "https://localhost:8000.evil.example",
        "http://localhost:8000@evil.example",
        "chrome-extension://abc",
        "file://",
    ],
)
def test_without_keys_a_page_of_another_origin_is_refused(origin: str) -> None:
    with pytest.raises(CrossSite):
        Hosts((), needs_keys=False).check(headers(host="localhost:8000", origin=origin))


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:8000", "http://localhost:8000"),
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("localhost", "http://localhost:80"),
        ("localhost", "https://localhost"),
        ("[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_a_page_of_this_server_may_ask_it(host: str, origin: str) -> None:
    Hosts((), needs_keys=False).check(headers(host=host, origin=origin, sec_fetch_site="same-origin"))


@pytest.mark.parametrize("site", ["cross-site", "same-site", "Cross-Site", " same-site "])
def test_what_a_browser_says_itself_is_believed(site: str) -> None:
    with pytest.raises(CrossSite):
        Hosts((), needs_keys=False).check(headers(host="localhost", sec_fetch_site=site))


def test_a_header_that_comes_twice_hides_nothing() -> None:
    hosts = Hosts((), needs_keys=False)
    for name, good, bad in (
        ("sec-fetch-site", "same-origin", "cross-site"),
        ("origin", "http://localhost", "https://evil.example"),
        ("host", "localhost", "evil.example"),
    ):
        for both in ((good, bad), (bad, good)):
            told = [(name.encode(), value.encode()) for value in both]
            with pytest.raises((CrossSite, ForeignHost)):
                hosts.check([*told, *([] if name == "host" else headers(host="localhost"))])


async def test_no_request_with_a_foreign_name_reads_or_writes(client: httpx.AsyncClient, backend: FakeBackend) -> None:
    for said, code in (
        ({"host": "evil.example"}, "foreign_host"),
        ({"origin": "https://evil.example"}, "cross_site"),
        ({"origin": "null", "content-type": "text/plain"}, "cross_site"),
    ):
        asked = [
            await client.post("/v1/moderations", json={"input": "x"}, headers=said),
            await client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("a", b"x")}, headers=said),
            await client.get("/v1/files", headers=said),
            await client.get("/metrics", headers=said),
            await client.get("/docs", headers=said),
            await client.delete("/v1/files/file-x", headers=said),
        ]
        for response in asked:
            error_of(response, 403, code=code)
            assert "evil" not in response.text
            assert not any(name.startswith("access-control") for name in response.headers)
    assert backend.cases == []


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_probes_are_answered_under_any_name(client: httpx.AsyncClient, path: str) -> None:
    response = await client.get(path, headers={"host": "10.1.2.3:8000"})
    assert response.status_code == 200
