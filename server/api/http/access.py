"""Access control: the key that a request presents, and the scope that its path needs.

The middleware checks both before it routes a request or reads its body. Every path is closed except those in OPEN. That
includes paths that do not exist, and paths that somebody adds tomorrow.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence

from server.api.http.hosts import Hosts
from server.api.http.paths import most_specific
from server.domain.aio import ended
from server.domain.caller import ANYONE, Caller, Scope
from server.domain.errors import InvalidApiKey, MissingScope
from server.store.keys import Keyring

log = logging.getLogger(__name__)

OPEN = frozenset({"/health", "/ready"})
"""Load balancers and supervisors, which hold no secrets, poll these paths. The answers contain only a state."""


class Access:
    """The door. Without a keyring it is open to anyone."""

    def __init__(self, keyring: Keyring | None, hosts: Hosts, scopes: Mapping[str, Scope]) -> None:
        """`scopes` maps a path to the scope that it and all paths below it need. Every other path needs ADMIN."""
        self._scopes = dict(scopes)
        self._hosts = hosts
        self._keyring = keyring
        self._watch: asyncio.Task[None] | None = None

    @property
    def needs_keys(self) -> bool:
        return self._keyring is not None

    async def open(self) -> None:
        """Read the keys, watch them for changes, and log who has access. Raises StoreUnavailable."""
        if self._keyring is None:
            log.info("API keys are off: anyone who can reach this server may use all of it")
            return
        await self._keyring.open()
        self._watch = asyncio.create_task(self._keyring.watch())
        if len(self._keyring):
            log.info("API keys are on for every path except /health and /ready: %d valid", len(self._keyring))
        else:
            log.warning(
                "API keys are on, but there are none: every path except /health and /ready answers 401."
                " Create a key with `llama-guard-server keys create NAME`"
            )

    async def close(self) -> None:
        if self._watch is not None:
            await ended(self._watch)

    def scope_of(self, path: str) -> Scope:
        return most_specific(path, self._scopes) or Scope.ADMIN

    def judges(self, path: str) -> bool:
        """Whether `path` gives verdicts. Its replies then carry the rate-limit headers."""
        return self.scope_of(path) is Scope.MODERATE

    async def caller_of(self, path: str, headers: Sequence[tuple[bytes, bytes]]) -> Caller:
        """Who asks for `path`. Raises ForeignHost, CrossSite, InvalidApiKey, MissingScope or KeysUnavailable."""
        if path in OPEN:
            return ANYONE
        self._hosts.check(headers)
        if self._keyring is None:
            return ANYONE
        caller = await self._keyring.find(_presented(headers))
        if caller is None:
            raise InvalidApiKey("Incorrect API key provided. The key is unknown, expired or revoked.")
        needed = self.scope_of(path)
        if needed not in caller.scopes:
            raise MissingScope(f"You have insufficient permissions for this operation. Missing scopes: {needed}.")
        return caller


def _presented(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The one key of a request, as a bearer token or in x-api-key. Raises InvalidApiKey.

    Both headers may hold the same key. Two different keys are refused: a proxy may have checked the other one.
    """
    found = set()
    for name, value in headers:
        if name == b"x-api-key":
            found.add(value.strip())
        elif name == b"authorization":
            scheme, _, token = value.strip().partition(b" ")
            found.add(token.strip() if scheme.lower() == b"bearer" else b"")
    if not found:
        raise InvalidApiKey(
            "You didn't provide an API key. Send it in the header Authorization, as 'Bearer KEY', or in x-api-key."
        )
    if len(found) > 1:
        raise InvalidApiKey("The request has two different API keys in its headers. Send only one.")
    return found.pop().decode("latin-1")
