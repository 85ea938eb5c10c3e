"""Fetches an image from the public internet, and from nowhere else.

A host name is resolved once, all of its addresses must be public, and the connection goes to one of these checked
addresses. So a name that resolves differently a second time gains nothing. Redirects are checked like the first URL.
Fetching is off unless the operator turns it on (`ImageLimits.remote`).
"""

import asyncio
import functools
import ipaddress
import logging
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Collection, Sequence

import httpx

from server.domain.errors import ImageTooLarge, InvalidImage
from server.images.url import too_many_bytes

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Maps a host name and port to IP addresses, in order of preference. Raises OSError."""

MAX_REDIRECTS = 3
MAX_URL_CHARACTERS = 8192

NOT_FETCHED = "The image could not be fetched. Its URL must lead to a public host that answers with the file."
"""One message for every failure. Different ones would let a caller map the operator's network."""

SPECIAL_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in (
        # IPv4, from IANA's special-purpose registry.
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.31.196.0/24",
        "192.52.193.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "192.175.48.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        # Azure's host agent answers virtual machines on this public address.
        "168.63.129.16/32",
        # IPv6 inside 2000::/3: protocol assignments with Teredo, documentation, 6to4.
        "2001::/23",
        "2001:db8::/32",
        "2002::/16",
        "2620:4f:8000::/48",
        "3fff::/20",
    )
)
GLOBAL_UNICAST_V6 = ipaddress.ip_network("2000::/3")
"""All other IPv6 addresses are special: mapped and translated IPv4 (NAT64), loopback, local, multicast, unassigned."""


def is_public(address: str) -> bool:
    """Whether an IP address is on the public internet and reached without translation or a tunnel."""
    ip = ipaddress.ip_address(address)
    if ip.version == 6 and (ip.scope_id or ip not in GLOBAL_UNICAST_V6):
        return False
    return not any(ip in network for network in SPECIAL_NETWORKS)


async def resolve(host: str, port: int) -> list[str]:
    """The system's addresses of a host."""
    found = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
    )
    return [str(address[0]) for _, _, _, _, address in found]


@functools.cache
def public_authorities() -> ssl.SSLContext:
    """Verifies certificates with certifi's authorities, whatever the environment says."""
    return httpx.create_ssl_context(trust_env=False)


class ImageFetcher:
    """GET of http(s) URLs, at most `max_bytes` of body within `timeout_s` seconds, redirects included.

    `resolver`, `is_allowed`, `ports` and `tls` are for tests and for operators with their own image store.
    """

    def __init__(
        self,
        max_bytes: int,
        timeout_s: float,
        resolver: Resolver = resolve,
        is_allowed: Callable[[str], bool] = is_public,
        ports: Collection[int] = (80, 443),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._resolver = resolver
        self._is_allowed = is_allowed
        self._ports = ports
        self._tls = tls
        # Its debug log holds the callers' URLs, and headers.
        logging.getLogger("httpcore").setLevel(logging.WARNING)

    async def fetch(self, url: str, param: str) -> bytes:
        """The body at `url`. Raises ImageTooLarge for its size or time, InvalidImage for any other failure."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._follow(url)
        except TimeoutError:
            raise ImageTooLarge("The image takes too long to fetch. Send it as a data: URL.", param=param) from None
        except (InvalidImage, ImageTooLarge) as error:
            raise error.at(param) from None
        except (OSError, ValueError, httpx.HTTPError, httpx.InvalidURL):
            raise InvalidImage(NOT_FETCHED, param=param) from None

    async def _follow(self, url: str) -> bytes:
        if len(url) > MAX_URL_CHARACTERS:
            raise InvalidImage(NOT_FETCHED)
        target = httpx.URL(url)
        for _ in range(1 + MAX_REDIRECTS):
            request = await self._request(target)
            # Only the transport, and a new one each time: it has no proxies, cookies, credentials or redirects, and a
            # connection that was verified for one name is not reused for another name at the same address.
            transport = httpx.AsyncHTTPTransport(verify=self._tls or public_authorities(), trust_env=False)
            async with transport:
                response = await transport.handle_async_request(request)
                try:
                    if not response.has_redirect_location:
                        return await self._read(response)
                    target = target.join(response.headers["location"])
                finally:
                    await response.aclose()
        raise InvalidImage(NOT_FETCHED)

    async def _request(self, target: httpx.URL) -> httpx.Request:
        """A request to a checked address of the target's host, under the host's name."""
        host = target.raw_host.decode("ascii")
        port = target.port or (443 if target.scheme == "https" else 80)
        if target.scheme not in ("http", "https") or target.userinfo or port not in self._ports or not is_host(host):
            raise InvalidImage(NOT_FETCHED)
        addresses = await self._resolver(host, port)
        if not addresses or not all(map(self._is_allowed, addresses)):
            raise InvalidImage(NOT_FETCHED)
        return httpx.Request(
            "GET",
            target.copy_with(host=addresses[0], fragment=None),
            headers={
                "Host": target.netloc.decode("ascii"),
                "User-Agent": "llama-guard-server",
                "Accept": "image/*",
                "Accept-Encoding": "identity",
                "Connection": "close",
            },
            # The certificate is verified for the name, not for the address.
            extensions={"sni_hostname": host},
        )

    async def _read(self, response: httpx.Response) -> bytes:
        if response.status_code != 200 or response.headers.get("content-encoding", "identity") != "identity":
            raise InvalidImage(NOT_FETCHED)
        if int(response.headers.get("content-length", 0)) > self._max_bytes:
            raise too_many_bytes(self._max_bytes)
        body = bytearray()
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > self._max_bytes:
                raise too_many_bytes(self._max_bytes)
        return bytes(body)


HOST_NAME = re.compile(r"(?!.*(?:^|\.)(?:[0-9]+|0x[0-9a-f]*)\.?$)[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?")
"""A name whose last label is not a number. With a number it would be one of many spellings of an IPv4 address."""


def is_host(host: str) -> bool:
    """Whether this is a host name, or an IP address in its one canonical spelling."""
    if HOST_NAME.fullmatch(host):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
