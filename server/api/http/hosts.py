"""The names under which this server is served, and the pages that may ask it.

A web page can make a browser on this machine send requests to a loopback address: from another origin, or from its own
after its name was pointed at 127.0.0.1. Such a request tells itself by its Host, its Origin or its Sec-Fetch-Site.
"""

import ipaddress
import re
from collections.abc import Iterable

from server.domain.errors import CrossSite, ForeignHost

ANY_HOST = "*"

FOREIGN_SITES = frozenset({"cross-site", "same-site"})
"""What browsers say of a page of another origin. A page of the same site may be that of another port."""

_AUTHORITY = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[^:\[\]@/]+)(:(?P<port>\d*))?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


class Hosts:
    """Checks the hosts of requests, and on a server without keys also their origins."""

    def __init__(self, allowed: Iterable[str], *, needs_keys: bool) -> None:
        """`allowed` are the names of `GUARD_ALLOWED_HOSTS`. Without keys, the names of loopback are allowed too."""
        self._allowed = frozenset(_plain(name) for name in allowed)
        self._any = ANY_HOST in self._allowed or (needs_keys and not self._allowed)
        self._origins = not needs_keys

    def check(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Raises ForeignHost or CrossSite."""
        hosts, origins, sites = set[str](), set[str](), set[str]()
        said = {b"host": hosts, b"origin": origins, b"sec-fetch-site": sites}
        for name, value in headers:
            if name in said:
                said[name].add(value.decode("latin-1").strip().lower())
        if not self._any and not all(map(self._serves, hosts)):
            raise ForeignHost(
                "This server is not served under the host that the request names. Use 127.0.0.1 or localhost. To serve"
                " it under other names, the operator lists them in GUARD_ALLOWED_HOSTS."
            )
        foreign = any(not _same(origin, host) for origin in origins for host in hosts or {""})
        if self._origins and (foreign or sites & FOREIGN_SITES):
            raise CrossSite(
                "This request came from a page of another origin. A server without API keys refuses such requests."
                " To allow them, the operator turns keys on with GUARD_AUTH=required."
            )

    def _serves(self, host: str) -> bool:
        authority = _AUTHORITY.fullmatch(host)
        if authority is None:
            return False
        name = _plain(authority["name"])
        return name in self._allowed or is_loopback(name)


def is_loopback(name: str) -> bool:
    """Whether `name` is certainly this machine."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def _plain(name: str) -> str:
    return name.strip().lower().strip("[]").removesuffix(".")


def _same(origin: str, host: str) -> bool:
    """Whether a page of `origin` is one of this server, which the request calls `host`."""
    scheme, _, authority = origin.partition("://")
    page, served = _AUTHORITY.fullmatch(authority), _AUTHORITY.fullmatch(host)
    if page is None or served is None or scheme not in _DEFAULT_PORTS:
        return False
    default = _DEFAULT_PORTS[scheme]
    return (page["name"], page["port"] or default) == (served["name"], served["port"] or default)
