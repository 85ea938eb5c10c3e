"""The fetcher connects to checked public addresses, and to nothing else."""

import asyncio
import contextlib
import errno
import gzip
import ipaddress
import logging
import shutil
import socket
import ssl
import subprocess
import time

import httpx
import pytest

from server.domain.conversation import ImagePart
from server.domain.errors import DeadlineExceeded, ImageTooLarge, InvalidImage
from server.families.llama_guard.pictures import SIZES
from server.images import ImageDecoder, ImageLimits
from server.images.fetch import NOT_FETCHED, ImageFetcher, is_public, resolve

PUBLIC = "93.184.215.14"


@pytest.fixture
def connects(monkeypatch):
    """Every address that any socket is told to connect to; none but the local ones is reached."""
    seen = []
    connect = socket.socket.connect

    def record(self, address):
        if self.family == socket.AF_UNIX:
            return connect(self, address)
        seen.append(address[0])
        if not ipaddress.ip_address(address[0]).is_loopback:
            raise ConnectionRefusedError
        return connect(self, address)

    def refuse(self, address):
        seen.append(address[0])
        return errno.ECONNREFUSED

    monkeypatch.setattr(socket.socket, "connect", record)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    return seen


NAMES = {
    "public.example": [PUBLIC],
    "private.example": ["10.0.0.7"],
    "loopback.example": ["127.0.0.1"],
    "both.example": [PUBLIC, "192.168.1.1"],
    "both6.example": [PUBLIC, "::1"],
    "mapped.example": ["::ffff:10.0.0.1"],
    "metadata.example": ["169.254.169.254"],
    "scoped.example": ["fe80::1%eth0"],
    "nowhere.example": [],
    "localhost": ["127.0.0.1", "::1"],
    "localhost.": ["127.0.0.1"],
    "metadata.google.internal": ["169.254.169.254"],
}


async def names(host: str, port: int) -> list[str]:
    """A resolver without network: these names, and every numeric spelling that the system's resolver reads."""
    if host in NAMES:
        return NAMES[host]
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, flags=socket.AI_NUMERICHOST)]


HOSTILE_URLS = [
    # IPv4 that is not public.
    "http://127.0.0.1/",
    "http://127.255.255.254/",
    "http://0.0.0.0/",
    "http://0.1.2.3/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://172.31.255.255/",
    "http://192.168.0.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://169.254.0.23/",
    "http://100.64.0.1/",
    "http://100.100.100.200/latest/meta-data/",
    "http://168.63.129.16/machine",
    "http://192.0.0.192/opc/v2/",
    "http://192.0.2.1/",
    "http://198.18.0.1/",
    "http://198.51.100.1/",
    "http://203.0.113.1/",
    "http://192.88.99.1/",
    "http://224.0.0.1/",
    "http://239.255.255.250/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    # Its other spellings: decimal, octal, hexadecimal, short, padded, with a dot, full-width.
    "http://2130706433/",
    "http://017700000001/",
    "http://0x7f000001/",
    "http://0x7f.0x0.0x0.0x1/",
    "http://0177.0.0.1/",
    "http://127.1/",
    "http://127.0.1/",
    "http://0/",
    "http://127.0.0.1./",
    "http://127.000.000.001/",
    "http://3232235521/",
    "http://0xA9FEA9FE/",
    "http://2852039166/",
    "http://１２７.０.０.１/",
    "http://①②⑦.⓪.⓪.①/",
    "http://127。0。0。1/",
    "http://999.1.1.1/",
    # A public address, but not in its canonical spelling.
    "http://1572394766/",
    "http://0x5db8d70e/",
    "http://93.184.55054/",
    "http://93.184.215.016/",
    # IPv6 that is not public, or that carries IPv4.
    "http://[::1]/",
    "http://[::]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::ffff:93.184.215.14]/",
    "http://[::127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[64:ff9b::93.184.215.14]/",
    "http://[64:ff9b:1::a00:1]/",
    "http://[2002:7f00:1::]/",
    "http://[2002:5db8:d70e::1]/",
    "http://[2001:0:53aa:64c::1]/",
    "http://[2001:db8::1]/",
    "http://[3fff::1]/",
    "http://[fc00::1]/",
    "http://[fd00:ec2::254]/latest/",
    "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
    "http://[100::1]/",
    "http://[5f00::1]/",
    "http://[4000::1]/",
    # Names.
    "http://localhost/",
    "http://localhost./",
    "http://LOCALHOST/",
    "http://private.example/",
    "http://loopback.example/",
    "http://both.example/",
    "http://both6.example/",
    "http://mapped.example/",
    "http://metadata.example/",
    "http://metadata.google.internal/",
    "http://scoped.example/",
    "http://nowhere.example/",
    # Ports, credentials, schemes, and URLs that parsers read differently.
    "http://public.example:22/",
    "http://public.example:8080/",
    "http://public.example:6379/",
    "https://public.example:8443/",
    "http://public.example:99999/",
    "http://public.example:-1/",
    "http://user@public.example/",
    "http://user:password@public.example/",
    "http://public.example@127.0.0.1/",
    "http://public.example:80@127.0.0.1/",
    "http://public.example\\@127.0.0.1/",
    "http://127.0.0.1\\.public.example/",
    "http://public.example#@127.0.0.1:22/x",
    "http://public.example\r\nHost: localhost/",
    "http://public.example%00.localhost/",
    "http://pub lic.example/",
    "http:///etc/passwd",
    "http:/public.example/",
    "http://",
    "https://",
    "//public.example/",
    "ftp://public.example/",
    "file:///etc/passwd",
    "gopher://public.example/",
    "unix:///var/run/docker.sock",
    "javascript:alert(1)",
    "http://" + "a" * 300 + ".example/",
    "http://public.example/" + "a" * 10_000,
]
CONNECTS_ONLY_TO_PUBLIC = {"http://public.example#@127.0.0.1:22/x"}
"""Here the port and address stand in the fragment: the host is public.example, and only that is connected."""


@pytest.mark.parametrize("url", HOSTILE_URLS)
async def test_hostile_urls_never_connect(url, connects):
    with pytest.raises(InvalidImage) as caught:
        await ImageFetcher(1000, 2, resolver=names).fetch(url, "input[0]")
    assert connects == ([PUBLIC] if url in CONNECTS_ONLY_TO_PUBLIC else [])
    assert caught.value.param == "input[0]"
    assert caught.value.message == NOT_FETCHED


def test_there_are_enough_hostile_urls():
    assert len(set(HOSTILE_URLS)) >= 60


@pytest.mark.parametrize("url", ["http://public.example/", "https://public.example:443/a", "http://93.184.215.14/"])
async def test_public_urls_do_connect(url, connects):
    """Else the table above would prove nothing."""
    with pytest.raises(InvalidImage):
        await ImageFetcher(1000, 2, resolver=names).fetch(url, "input[0]")
    assert connects == [PUBLIC]


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "93.184.215.14", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450:4001:82a::200e"]
)
def test_public_addresses(address):
    assert is_public(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433"])
async def test_the_systems_resolver_gives_addresses_to_check(host):
    addresses = await resolve(host, 80)
    assert addresses
    assert not any(map(is_public, addresses))


async def test_a_name_is_resolved_once_and_the_checked_address_connected(connects):
    answers = [[PUBLIC], ["127.0.0.1"], ["127.0.0.1"]]

    async def rebinding(host, port):
        return answers.pop(0)

    with pytest.raises(InvalidImage):
        await ImageFetcher(1000, 2, resolver=rebinding).fetch("http://rebind.example/", "input[0]")
    assert connects == [PUBLIC]
    assert len(answers) == 2


async def test_failures_of_the_resolver(connects):
    for failure in (socket.gaierror(-2, "Name or service not known"), UnicodeError("label too long")):

        async def fail(host, port, failure=failure):
            raise failure

        with pytest.raises(InvalidImage) as caught:
            await ImageFetcher(1000, 2, resolver=fail).fetch("http://CANARY.example/CANARY", "input[0]")
        assert "canary" not in str(caught.value).lower()
    assert connects == []


# --- A server of our own ---------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def serving(answer, tls=None):
    """A local server. `answer` gets the request's text, and gives the bytes to send; yields port and requests."""
    requests = []

    async def handle(reader, writer):
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            requests.append((await reader.readuntil(b"\r\n\r\n")).decode("latin-1"))
            for piece in answer(requests[-1]):
                if isinstance(piece, float):
                    await asyncio.sleep(piece)
                else:
                    writer.write(piece)
                    await writer.drain()
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1], requests
    finally:
        server.close()


def ok(body: bytes, *headers: str) -> list[bytes]:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers, "", ""]
    return ["\r\n".join(lines).encode() + body]


def redirect(location: str, status=302) -> list[bytes]:
    return [f"HTTP/1.1 {status} Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()]


def local_fetcher(port, max_bytes=1000, timeout_s=2.0, **options) -> ImageFetcher:
    """Takes 127.0.0.1 for a public address; private.example stays private."""

    async def resolver(host, _):
        return ["10.0.0.7"] if host == "private.example" else ["127.0.0.1"]

    return ImageFetcher(
        max_bytes,
        timeout_s,
        resolver=resolver,
        is_allowed=lambda address: address == "127.0.0.1",
        ports=(80, 443, port),
        **options,
    )


async def test_happy_path(connects):
    async with serving(lambda _: ok(b"picture", "Set-Cookie: a=b")) as (port, requests):
        fetcher = local_fetcher(port)
        for _ in range(2):
            assert await fetcher.fetch(f"http://images.example:{port}/a%20b.png?c=d#e", "input[0]") == b"picture"
    assert connects == ["127.0.0.1"] * 2
    line, *headers = requests[1].strip().split("\r\n")
    assert line == "GET /a%20b.png?c=d HTTP/1.1"
    assert dict(header.lower().split(": ", 1) for header in headers) == {
        "host": f"images.example:{port}",
        "user-agent": "llama-guard-server",
        "accept": "image/*",
        "accept-encoding": "identity",
        "connection": "close",
    }


async def test_redirects_are_followed_and_relative_ones_resolved():
    def answer(request):
        path = request.split()[1]
        return ok(b"picture") if path == "/c" else redirect({"/a": "b", "/b": f"//other.example:{port}/c"}[path])

    async with serving(answer) as (port, requests):
        assert await local_fetcher(port).fetch(f"http://images.example:{port}/a", "input[0]") == b"picture"
    assert [request.split("\r\n")[1] for request in requests] == [
        f"Host: {host}:{port}" for host in ("images.example", "images.example", "other.example")
    ]


async def test_at_most_three_redirects():
    async with serving(lambda _: redirect("/again")) as (port, requests):
        with pytest.raises(InvalidImage):
            await local_fetcher(port).fetch(f"http://images.example:{port}/", "input[0]")
    assert len(requests) == 4


@pytest.mark.parametrize(
    "location",
    [
        "http://private.example/",
        "https://private.example/",
        "http://10.0.0.1/",
        "http://[::1]/",
        "http://169.254.169.254/",
        "http://2130706433/",
        "//private.example/",
        "http://images.example:22/",
        "http://user@images.example/",
        "ftp://images.example/",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
    ],
)
@pytest.mark.parametrize("status", [301, 307])
async def test_redirects_are_checked_like_the_first_url(location, status, connects):
    async with serving(lambda _: redirect(location, status)) as (port, requests):

        async def resolver(host, _):
            return ["127.0.0.1"] if host == "images.example" else await names(host, _)

        fetcher = ImageFetcher(
            1000, 2, resolver=resolver, is_allowed=lambda a: len(connects) == 0 or is_public(a), ports=(80, 443, port)
        )
        with pytest.raises(InvalidImage):
            await fetcher.fetch(f"http://images.example:{port}/", "input[0]")
    assert connects == ["127.0.0.1"]
    assert len(requests) == 1


async def test_the_body_is_bounded():
    async with serving(lambda _: ok(b"x" * 1000)) as (port, _):
        url = f"http://images.example:{port}/"
        assert len(await local_fetcher(port, max_bytes=1000).fetch(url, "input[0]")) == 1000
        with pytest.raises(ImageTooLarge, match="at most 999 bytes") as caught:
            await local_fetcher(port, max_bytes=999).fetch(url, "input[0]")
        assert caught.value.param == "input[0]"


async def test_an_endless_body_is_cut():
    sent = 0

    def answer(_):
        nonlocal sent
        yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        while True:
            sent += 4096
            yield b"1000\r\n" + b"x" * 4096 + b"\r\n"

    async with serving(answer) as (port, _):
        with pytest.raises(ImageTooLarge):
            await local_fetcher(port, max_bytes=100_000).fetch(f"http://images.example:{port}/", "input[0]")
    assert sent < 20 * 2**20  # What the sockets' buffers take.


@pytest.mark.parametrize(
    "answer",
    [
        [5.0],
        [b"HTTP/1.1 200 OK\r\n", *[0.1] * 50],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", *[b"x", 0.1] * 50],
    ],
    ids=["silence", "slow headers", "slow body"],
)
async def test_time_is_bounded_in_total(answer):
    async with serving(lambda _: answer) as (port, _):
        started = time.perf_counter()
        with pytest.raises(ImageTooLarge, match="too long") as caught:
            await local_fetcher(port, timeout_s=0.3).fetch(f"http://images.example:{port}/", "input[0]")
        assert time.perf_counter() - started < 1.5
    assert caught.value.param == "input[0]"


async def test_a_request_whose_images_are_fetched_too_slowly_is_late() -> None:
    """All its images share one time for fetching and decoding."""
    async with serving(lambda _: [5.0]) as (port, _):
        decoder = ImageDecoder(ImageLimits(remote=True, timeout_s=0.3), SIZES, fetcher=local_fetcher(port))
        with pytest.raises(DeadlineExceeded, match="in time"):
            await decoder.decode([ImagePart(f"http://images.example:{port}/")])
        decoder.close()


@pytest.mark.parametrize(
    "answer",
    [
        [b"HTTP/1.1 404 Not Found\r\nContent-Length: 6\r\n\r\nCANARY"],
        [b"HTTP/1.1 206 Partial Content\r\nContent-Length: 6\r\n\r\nCANARY"],
        [b"HTTP/1.1 304 Not Modified\r\n\r\n"],
        [b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nCANARY"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n"],
        [b"CANARY\r\n\r\n"],
        [b""],
        ok(gzip.compress(b"x" * 100_000), "Content-Encoding: gzip"),
    ],
)
async def test_anything_but_a_whole_plain_answer_is_refused(answer):
    async with serving(lambda _: answer) as (port, _):
        with pytest.raises(InvalidImage) as caught:
            await local_fetcher(port).fetch(f"http://images.example:{port}/", "input[0]")
    assert caught.value.message == NOT_FETCHED


async def test_nothing_of_the_exchange_is_logged(caplog):
    caplog.set_level(logging.DEBUG)
    async with serving(lambda _: ok(b"CANARY", "X-CANARY: 1")) as (port, _):
        await local_fetcher(port).fetch(f"http://images.example:{port}/CANARY", "input[0]")
    assert "CANARY" not in caplog.text
    assert not [record for record in caplog.records if record.name.startswith("http")]


@pytest.fixture
def own_certificate(tmp_path):
    """Key and certificate of images.example, signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is needed")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=images.example"
    names = ["-addext", "subjectAltName=DNS:images.example"]
    subprocess.run([*command.split(), *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return key, certificate


async def test_the_certificate_is_verified_for_the_name_at_the_checked_address(own_certificate):
    key, certificate = own_certificate
    names_asked = []
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    tls.sni_callback = lambda _, name, __: names_asked.append(name)
    trusting = ssl.create_default_context(cafile=certificate)
    async with serving(lambda _: ok(b"picture"), tls) as (port, requests):
        url = f"https://images.example:{port}/"
        assert await local_fetcher(port, tls=trusting).fetch(url, "input[0]") == b"picture"
        assert names_asked == ["images.example"]
        with pytest.raises(InvalidImage):
            await local_fetcher(port, tls=trusting).fetch(f"https://other.example:{port}/", "input[0]")
        with pytest.raises(InvalidImage):
            await local_fetcher(port).fetch(url, "input[0]")
    assert len(requests) == 1


def test_httpx_reads_hosts_as_these_tests_assume():
    assert httpx.URL("http://public.example#@127.0.0.1:22/x").host == "public.example"
