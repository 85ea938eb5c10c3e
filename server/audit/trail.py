"""One process's chain of records, and the chain of its seals in another place.

A seal says how many records the chain has and what its head is. Whoever cuts records off would have to cut off seals
too, in a place that should be out of his reach. Not for use by two threads at once.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from server.audit.chain import BadLine, Head, Secrets, before_all, chained, parsed
from server.audit.places import Part, Place

log = logging.getLogger(__name__)

Body = Mapping[str, Any]


def timestamp(now: float) -> str:
    """UTC with microseconds, such as 2026-12-01T11:55:30.000000Z."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Trail:
    """`begin` once, then `append` and `seal`; `end` and `close` at the end. All raise OSError if a place fails."""

    def __init__(
        self,
        secrets: Secrets,
        records: Place,
        seals: Place,
        *,
        chain: str,
        keep_s: float = math.inf,
        keep_bytes: float = math.inf,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Records older than `keep_s` are dropped, and the oldest ones if all have more than `keep_bytes`."""
        self.chain = chain
        self._secrets = secrets
        self._records, self._seals = records, seals
        self._head = before_all(secrets.records, chain)
        self._sealed = before_all(secrets.seals, chain)
        self._sealed_n = -1
        self._keep_s, self._keep_bytes = keep_s, keep_bytes
        self._now = now

    def begin(self, body: Body) -> None:
        """Write the first record. It names the heads of the chains that are there and that no other record names."""
        heads = [{"chain": head.chain, "n": head.n, "mac": head.mac} for head in unlinked_heads(self._records)]
        self.append([{**body, "chain": self.chain, "heads": heads}])
        self.seal()

    def append(self, bodies: Iterable[Body]) -> None:
        """Write records, all or none."""
        self._head = self._written(self._records, self._secrets.records, self._head, bodies)

    def seal(self) -> None:
        """Seal what has been written since the last seal, if anything has."""
        if self._head.n != self._sealed_n:
            self._seal({"event": "seal", "records": self._head.n + 1, "head": self._head.mac})
            self._sealed_n = self._head.n

    def end(self) -> None:
        self.append([{"event": "end", "time": timestamp(self._now())}])
        self.seal()

    def close(self) -> None:
        self._records.close()
        self._seals.close()

    def drop_old(self) -> int:
        """Drop the parts whose last record is too old, and the oldest if there are too many bytes.

        A seal says so first. Returns how many parts were dropped.
        """
        if math.isinf(self._keep_s) and math.isinf(self._keep_bytes):
            return 0
        before = "" if math.isinf(self._keep_s) else timestamp(self._now() - self._keep_s)
        excess = self._records.size() - self._keep_bytes
        dropped, kept = 0, set[str]()
        for part in self._records.parts():
            size = part.size
            # Only from the beginning of a chain: a hole in its middle would look like tampering.
            if part.chain in kept or not self._drop(part, before, anyway=excess > 0):
                kept.add(part.chain)
            else:
                dropped, excess = dropped + 1, excess - size
        return dropped

    def _drop(self, part: Part, before: str, *, anyway: bool) -> bool:
        """Drop the part if it ends before that time, or `anyway`."""
        try:
            body, mac = parsed(part.last)
        except BadLine:
            return False
        if not (anyway or str(body.get("time", "~")) < before):
            return False
        self._seal({"event": "dropped", "chain": part.chain, "through": body["n"], "head": mac})
        part.drop()
        return True

    def _seal(self, body: Body) -> None:
        bodies = [{"time": timestamp(self._now()), **body}]
        self._sealed = self._written(self._seals, self._secrets.seals, self._sealed, bodies)

    def _written(self, place: Place, key: bytes, head: Head, bodies: Iterable[Body]) -> Head:
        first, lines = head.n + 1, []
        for body in bodies:
            line, head = chained(key, head, body)
            lines.append(line)
        if lines:
            place.append(self.chain, first, lines)
        return head


def unlinked_heads(place: Place) -> list[Head]:
    """The heads of all chains that no first record of another chain names yet."""
    heads, linked = list[Head](), set[tuple[str, str]]()
    for chain in place.chains():
        try:
            (first, _), (last, mac) = map(parsed, place.ends(chain))
        except BadLine:
            continue  # a process that died before its first record was whole, or damage that `audit verify` reports
        heads.append(Head(chain, last["n"], mac))
        linked.update(_links(first))
    return [head for head in heads if (head.chain, head.mac) not in linked]


def _links(first: Body) -> Sequence[tuple[str, str]]:
    try:
        return [(head["chain"], head["mac"]) for head in first.get("heads", ())]
    except (KeyError, TypeError):
        return ()
