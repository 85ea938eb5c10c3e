"""Writes records in a thread, so that no disk ever holds up the event loop. What waits is written together.

The queue is bounded. A record that finds it full, or cannot be written, is lost; the next one that can be written is
preceded by a record of how many were.
"""

import asyncio
import contextlib
import logging
import math
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from server.audit.trail import Body, Trail, timestamp
from server.domain.errors import AuditUnavailable
from server.domain.events import AuditFailed, AuditWritten, publish

log = logging.getLogger(__name__)

MOST_WAITING = 10_000
"""Records."""

GROUP = 1000
"""Records that are written together, and after whose number no more are added."""

LATEST_S = 10.0
"""A record that is not written after this time is treated as one that cannot be."""

DROP_EVERY_S = 600.0
COMPLAIN_EVERY_S = 10.0
TICK_S = 1.0


@dataclass(frozen=True, slots=True)
class _Entry:
    bodies: Sequence[Body]
    loop: asyncio.AbstractEventLoop
    written: asyncio.Future[bool]


class Writer:
    """`start()` once, `await write()` for records, `await close()` at the end."""

    def __init__(self, trail: Trail, *, seal_every_s: float, refuse: bool, most_waiting: int = MOST_WAITING) -> None:
        self._trail = trail
        self._seal_every_s = seal_every_s
        self._refuse = refuse
        self._most_waiting = most_waiting
        self._queue: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._waiting = 0
        self._counts = threading.Lock()
        self._lost = 0
        self._sealed_at = time.monotonic()
        self._dropped_at = -math.inf  # what is too old at the start goes at once
        self._complained_at = -COMPLAIN_EVERY_S
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def write(self, bodies: Sequence[Body]) -> None:
        """Write records. If the operator refuses verdicts without a record, it waits until they are on the disk.

        Raises AuditUnavailable in that case only.
        """
        with self._counts:
            full = self._waiting + len(bodies) > self._most_waiting and self._waiting > 0
            if not full:
                self._waiting += len(bodies)
        if full:
            self._lose(len(bodies), "full")
            written = False
        else:
            loop = asyncio.get_running_loop()
            entry = _Entry(bodies, loop, loop.create_future())
            self._queue.put(entry)
            if not self._refuse:
                return
            written = await self._in_time(entry)
        if self._refuse and not written:
            raise AuditUnavailable(
                "The server cannot write its audit trail, so it gives no verdict. Try again later.", retry_after=5
            )

    async def _in_time(self, entry: _Entry) -> bool:
        try:
            async with asyncio.timeout(LATEST_S):
                return await entry.written
        except TimeoutError:
            publish(AuditFailed(len(entry.bodies), "late", refused=True))
            return False

    async def close(self) -> None:
        """Write what waits, the last record and the last seal, and close the places."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)

    # --- In the thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        closing = False
        while not closing:
            group, closing = self._next()
            if group:
                self._write(group)
            self._keep_house()
        try:
            self._trail.append(self._lost_record())
            self._trail.end()
        except Exception as error:
            self._complain("the audit trail could not be ended", error)
        with contextlib.suppress(OSError):
            self._trail.close()

    def _next(self) -> tuple[list[_Entry], bool]:
        group, count = list[_Entry](), 0
        try:
            entry = self._queue.get(timeout=min(TICK_S, self._seal_every_s))
            while entry is not None:
                group.append(entry)
                count += len(entry.bodies)
                if count >= GROUP:
                    return group, False
                entry = self._queue.get_nowait()
        except queue.Empty:
            return group, False
        return group, True

    def _write(self, group: Sequence[_Entry]) -> None:
        bodies = [body for entry in group for body in entry.bodies]
        try:
            self._trail.append([*self._lost_record(), *bodies])
            written = True
        except Exception as error:  # a defect too must not end the thread, or every later record would be lost
            self._complain("audit records could not be written", error)
            written = False
        with self._counts:
            self._waiting -= len(bodies)
            if written:
                self._lost = 0
        if written:
            publish(AuditWritten(len(bodies)))
        else:
            self._lose(len(bodies), "disk")
        for loop in {entry.loop for entry in group}:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                loop.call_soon_threadsafe(_tell, [entry.written for entry in group if entry.loop is loop], written)

    def _lost_record(self) -> list[Body]:
        with self._counts:
            lost = self._lost
        return [{"event": "lost", "time": timestamp(time.time()), "records": lost}] if lost else []

    def _lose(self, records: int, reason: str) -> None:
        if not self._refuse:  # a verdict that did not leave is not missing from the trail
            with self._counts:
                self._lost += records
        publish(AuditFailed(records, reason, refused=self._refuse))

    def _keep_house(self) -> None:
        now = time.monotonic()
        try:
            if now - self._sealed_at >= self._seal_every_s:
                self._sealed_at = now
                self._trail.seal()
            if now - self._dropped_at >= DROP_EVERY_S:
                self._dropped_at = now
                if dropped := self._trail.drop_old():
                    log.info("audit: dropped %d old parts of the trail", dropped)
        except Exception as error:
            self._complain("the audit trail could not be sealed or shortened", error)

    def _complain(self, what: str, error: Exception) -> None:
        now = time.monotonic()
        if now - self._complained_at >= COMPLAIN_EVERY_S:
            self._complained_at = now
            reason = error.strerror if isinstance(error, OSError) else None
            log.error("%s: %s", what, reason or type(error).__name__)


def _tell(futures: Sequence[asyncio.Future[bool]], written: bool) -> None:
    for future in futures:
        if not future.done():
            future.set_result(written)
