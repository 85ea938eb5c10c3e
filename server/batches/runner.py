"""The work on batches, which runs next to live requests and gives way to them.

A batch goes through validating, in_progress and finalizing to completed. Each step is in the database before the next
one begins, so if a server dies the next one continues from there. A line's result counts once it is recorded. A line
that was judged but not recorded is judged again.
"""

import asyncio
import contextlib
import functools
import logging
import random
import sys
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Callable, Container, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

from server.api.endpoint import Endpoint
from server.api.http.body import validate
from server.api.http.errors import error_body
from server.api.service import Service
from server.batches.endpoints import ENDPOINTS
from server.batches.lines import Line, LineCheck, answered_line, expired_line, read_lines, request_of
from server.batches.places import Places
from server.batches.turns import Turns, Work
from server.domain.aio import ended, fresh
from server.domain.caller import Handling
from server.domain.errors import (
    SERVERS_CONDITION,
    GuardError,
    InternalError,
    InvalidRequest,
    NotFound,
    StoreUnavailable,
)
from server.domain.events import BatchChanged, LinesDone, publish
from server.domain.reading import Reading
from server.domain.verdict import Verdict
from server.moderation.readiness import Readiness
from server.store.batches import Batch, Batches, LeaseLost, LineResult, Status, Waiting
from server.store.database import Database, Unstorable
from server.store.files import Files

log = logging.getLogger(__name__)

POLL_S = 5.0
"""The time after which this server sees batches that another server created or left."""

HEARTBEAT_S = 1.0
LINGER_S = 0.1
"""A result waits for this time for others, to be written in one transaction."""

GROUP = 64
"""The most results in one transaction."""

TRIES = 5
"""Tries for a line that fails for its own reasons, such as a deadline. If the server is unavailable the line waits."""

LONGEST_WAIT_S = 10.0

FALLS_OF_A_FILE = 3
"""A file is given up after so many servers fell while they checked it."""

TRIES_ALONE = 2
"""A line is given up after so many servers fell while they judged it alone."""

PAUSE_S = 2.0
"""The time before a line that a server fell at is tried again: the server shows that it serves, whoever watches it."""


def _fault(code: str, message: str, param: str | None = None) -> dict[str, Any]:
    """An entry of a batch's `errors` that is about the whole file."""
    return {"code": code, "message": message, "param": param, "line": None}


FILE_GONE = _fault("file_not_found", "The input file was deleted. Upload it again.", "input_file_id")

ENDS = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit)
"""What ends the work itself. Everything else is a failure of a line, a panic of a library in Rust too, which is no
Exception."""


class BatchRunner:
    """`run()` works on batches until it is cancelled. It leaves them in their current state."""

    def __init__(
        self,
        database: Database,
        service: Service,
        readiness: Readiness,
        changed: asyncio.Event,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`changed` is set whenever there may be something new to do."""
        self._database = database
        self._files = Files(database, now)
        self._batches = Batches(database, now)
        self._service = service
        self._readiness = readiness
        self._changed = changed
        self._now = now
        self._worker = uuid.uuid4().hex
        self._places = Places(service.settings.batch_concurrency)
        self._turns = Turns()
        self._alone = asyncio.Lock()
        """Held by the one line of this server that is judged alone. A fall must point at one line."""

    async def run(self) -> None:
        try:
            while True:
                self._changed.clear()
                try:
                    await self._look_around()
                except StoreUnavailable:
                    pass  # logged where it happened; the next round tries again
                except Exception as error:
                    # A defect must not end the work on all batches to come.
                    log.error("batches: defect %s at\n%s", type(error).__name__, _place(error))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_S):
                        await self._changed.wait()
        finally:
            await ended(*(work.task for work in self._turns.at_work.values()))

    async def _look_around(self) -> None:
        while not self._service.draining and (chosen := await self._next()) is not None:
            batch = await self._batches.claim(self._worker, chosen.id)
            if batch is not None:
                self._turns.begin(batch.id, Work(batch.owner, asyncio.create_task(self._work_on(batch))))

    async def _next(self) -> Waiting | None:
        """The batch to begin with now, if any."""
        turns = self._turns
        chosen = turns.next(await self._batches.waiting(besides=turns.at_work))
        if chosen is not None:
            if not turns.full:
                return chosen
            turns.give_way(chosen)
        if turns.overfull:
            return None
        return next(iter(await self._batches.waiting(besides=turns.at_work, urgent_only=True)), None)

    # --- One batch ---------------------------------------------------------------------------------------

    async def _work_on(self, batch: Batch) -> None:
        try:
            await self._bring_to_its_end(batch)
        except asyncio.CancelledError:
            await self._release(batch)
            raise
        except Exception as error:
            # The lease must run out before another try: a line that cannot be stored must not be judged repeatedly.
            match _cause(error):
                case LeaseLost():
                    log.warning("%s: another server has taken over this batch", batch.id)
                case StoreUnavailable():
                    log.warning("%s: postponed, because the database failed", batch.id)
                case defect:
                    log.error("%s: defect %s at\n%s", batch.id, type(defect).__name__, _place(defect))
        finally:
            del self._turns.at_work[batch.id]
            self._changed.set()

    async def _bring_to_its_end(self, batch: Batch) -> None:
        stop = asyncio.Event()
        if self._now() >= batch.expires_at:
            stop.set()
        async with asyncio.TaskGroup() as group:
            heart = group.create_task(self._beat(batch, stop))
            status, faults = await self._advance(batch, stop)
            await ended(heart)  # the end of the batch gives the lease back
        if status is Status.FAILED:
            batch = await self._batches.fail(batch.id, self._worker, faults)
            if batch.status is Status.CANCELLING:
                status, faults = Status.CANCELLED, ()
        if not batch.status.ended:
            keep_s = self._service.settings.retention
            batch = await self._batches.end(batch.id, self._worker, status, faults, keep_s=keep_s)
        log.info(
            "%s: %s, %d lines: %d completed, %d failed", batch.id, status, batch.total, batch.completed, batch.failed
        )
        publish(BatchChanged(batch.id, status))

    async def _beat(self, batch: Batch, stop: asyncio.Event) -> None:
        """Renew the lease, and set `stop` on a cancellation or at the end of the completion window."""
        while True:
            status = await self._batches.renew(batch.id, self._worker)
            if status is Status.CANCELLING or self._now() >= batch.expires_at:
                stop.set()
            await asyncio.sleep(HEARTBEAT_S)

    async def _advance(self, batch: Batch, stop: asyncio.Event) -> tuple[Status, Sequence[dict[str, Any]]]:
        """Do everything except the end. Returns the status to end with, and the faults of the file."""
        if batch.status is Status.VALIDATING:
            if stop.is_set():
                return Status.EXPIRED, ()
            if batch.falls >= FALLS_OF_A_FILE:
                return Status.FAILED, [_fault("server_error", "The server stopped each time it checked this file.")]
            check = await self._validate(batch)
            if check.faults:
                return Status.FAILED, check.faults
            batch = await self._batches.start(batch.id, self._worker, model=self._service.names.id, total=check.total)
            publish(BatchChanged(batch.id, batch.status))
        if batch.status is Status.IN_PROGRESS:
            work = self._turns.at_work[batch.id]
            work.judging = True
            try:
                judged = await _unless(stop, self._judge(batch))
            except Exception as error:
                if isinstance(_cause(error), NotFound):
                    return Status.FAILED, [FILE_GONE]
                raise
            finally:
                work.judging = False
            if not judged and await self._batches.renew(batch.id, self._worker) is not Status.CANCELLING:
                await self._expire(batch)
                return Status.EXPIRED, ()
            if judged:
                batch = await self._batches.finalize(batch.id, self._worker)
        return Status.COMPLETED if batch.status is Status.FINALIZING else Status.CANCELLED, ()

    async def _validate(self, batch: Batch) -> LineCheck:
        check = LineCheck(batch.endpoint, self._service.names)
        try:
            async for lines in self._lines(batch):
                # In a thread, to keep the event loop free for live requests.
                await asyncio.to_thread(check.read, lines)
                if check.hopeless:
                    break
        except NotFound:
            check.faults = [FILE_GONE]
        except (StoreUnavailable, *ENDS):
            raise
        except BaseException as error:
            log.error("%s: defect %s at\n%s", batch.id, type(error).__name__, _place(error))
            check.faults = [_fault("server_error", "The server failed while it checked this file.")]
        else:
            check.end()
        return check

    def _lines(self, batch: Batch) -> AsyncIterator[list[Line]]:
        settings = self._service.settings
        # A line that passed the check was short enough then, even if the settings have changed since.
        limit = settings.max_body_bytes if batch.status is Status.VALIDATING else sys.maxsize
        return read_lines(self._files.content(batch.input_file_id), limit)

    async def _judge(self, batch: Batch) -> None:
        """Judge every line that has no result yet.

        If a server fell at this batch, the lines that it may have fallen at are judged one by one, and those that
        another one fell at even so come last of all.
        """
        done = await self._batches.recorded(batch.id)
        suspects = await self._batches.suspects(batch.id)
        alone = 2 * self._service.settings.batch_concurrency if batch.falls else 0
        recorder = _Recorder(self._batches, batch.id, self._worker)
        async with asyncio.TaskGroup() as group:
            group.create_task(recorder.run())
            async with asyncio.TaskGroup() as answers:
                async for line in self._rest(batch, done | suspects.keys()):
                    if alone > 0:
                        alone -= 1
                        await self._answer_alone(batch, line, recorder)
                        continue
                    taken = await self._places.take(batch.owner, len(line.content or b""))
                    answer = answers.create_task(self._answer(batch, line, recorder))
                    # Not at the end of the task: a task that is cancelled at once never begins.
                    answer.add_done_callback(functools.partial(self._give_back, taken))
            if suspects:
                async for line in self._rest(batch, done):
                    if line.number in suspects:
                        await self._answer_suspect(batch, line, suspects[line.number], recorder)
            await recorder.close()
        if len(await self._batches.recorded(batch.id)) != batch.total:
            # A task that something else cancelled ends without an error.
            raise RuntimeError("a line was left without a result")

    async def _rest(self, batch: Batch, done: Container[int]) -> AsyncIterator[Line]:
        """The lines that are not in `done`."""
        async for lines in self._lines(batch):
            for line in lines:
                if line.number not in done:
                    yield line

    def _give_back(self, places: int, _: object) -> None:
        self._places.give_back(places)

    async def _answer(self, batch: Batch, line: Line, recorder: "_Recorder") -> None:
        await recorder.put(await self._result(batch, line))

    async def _answer_alone(self, batch: Batch, line: Line, recorder: "_Recorder") -> None:
        """Judge the line so that whoever finds it without a result knows that the server fell at it."""
        async with self._alone:
            await self._batches.suspect(batch.id, self._worker, line.number)
            await recorder.store([await self._result(batch, line)])

    async def _answer_suspect(self, batch: Batch, line: Line, tries: int, recorder: "_Recorder") -> None:
        if tries < TRIES_ALONE:
            await asyncio.sleep(PAUSE_S)
            await self._answer_alone(batch, line, recorder)
            return
        log.error("%s: line %d is given up, because the server fell at it %d times", batch.id, line.number, tries)
        message = f"The server stopped {tries} times while it judged only this line, so it does not try it again."
        custom_id = await asyncio.to_thread(_custom_id, line)  # it may be what froze the event loop
        await recorder.store([_failed(line.number, custom_id, InternalError(message))])

    async def _result(self, batch: Batch, line: Line) -> LineResult:
        """The result of one line. Whatever is wrong with the line is its own result, and ends nothing else."""
        try:
            handling = _handling(batch, line)
            custom_id, document = await handling.reading.done(lambda: request_of(line))
            status, body, verdicts = await self._ask(ENDPOINTS[batch.endpoint], document, handling)
            completions = [verdict.completion for verdict in verdicts]
            return LineResult(
                line=line.number,
                failed=status != 200,
                document=answered_line(custom_id, status, body),
                input_tokens=sum(completion.prompt_tokens for completion in completions),
                cached_tokens=sum(completion.cached_tokens for completion in completions),
                output_tokens=sum(completion.completion_tokens for completion in completions),
            )
        except ENDS:
            raise
        except BaseException as error:
            log.error("%s: line %d: defect %s at\n%s", batch.id, line.number, type(error).__name__, _place(error))
            return _failed(line.number, _custom_id(line), InternalError("The server failed on this line."))

    async def _ask(
        self, endpoint: Endpoint[Any, Any], document: dict[str, Any] | InvalidRequest, handling: Handling
    ) -> tuple[int, Mapping[str, object], Sequence[Verdict]]:
        """The status and body that a single request would get, after retries if they may help."""
        tries = failures = 0
        while True:
            try:
                if isinstance(document, InvalidRequest):
                    raise fresh(document)
                body = await handling.reading.done(partial(validate, document, endpoint.body))
                if getattr(body, "stream", None):
                    raise InvalidRequest("A line of a batch cannot be streamed. Leave out 'stream'.", param="stream")
                reply = await endpoint.answer(self._service, body, handling)
                return 200, reply.document, reply.verdicts
            except GuardError as error:
                failures += 1
                tries += self._is_of_its_own(error)
                if not error.retryable or tries >= TRIES:
                    return error.status, error_body(error), ()
                wait = max(error.retry_after or 0, wait_after(failures))
                await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311
            except Exception as error:
                log.error("a line of a batch: defect %s at\n%s", type(error).__name__, _place(error))
                failed = InternalError("The server failed on this request.")
                return failed.status, error_body(failed), ()

    def _is_of_its_own(self, error: GuardError) -> bool:
        """Whether the line is at fault, and not the state of the server."""
        return not isinstance(error, SERVERS_CONDITION) and self._readiness.reason_not_ready() is None

    async def _expire(self, batch: Batch) -> None:
        """Give every line without a result the result that it was not judged in time."""
        done = await self._batches.recorded(batch.id)
        recorder = _Recorder(self._batches, batch.id, self._worker)
        with contextlib.suppress(NotFound):  # without its file there are no lines that could have a result
            async for lines in self._lines(batch):
                rest = [line for line in lines if line.number not in done]
                for start in range(0, len(rest), GROUP):
                    results = await asyncio.to_thread(_expired, rest[start : start + GROUP])
                    await recorder.store(results, expired=True)

    async def _release(self, batch: Batch) -> None:
        with contextlib.suppress(StoreUnavailable):
            await self._batches.release(batch.id, self._worker, fell=not self._readiness.alive)


class _Recorder:
    """Writes results together as they arrive. One transaction for each would wait for the disk every time."""

    def __init__(self, batches: Batches, batch_id: str, worker: str) -> None:
        self._batches = batches
        self._batch_id = batch_id
        self._worker = worker
        self._queue: asyncio.Queue[LineResult | None] = asyncio.Queue(GROUP)
        self._group: list[LineResult] = []
        self._full = asyncio.Event()

    async def put(self, result: LineResult) -> None:
        await self._queue.put(result)
        if self._queue.full():
            self._full.set()

    async def close(self) -> None:
        await self._queue.put(None)
        self._full.set()

    async def run(self) -> None:
        """Write results until closed. If it is cancelled, it still writes those that it has."""
        try:
            while (first := await self._queue.get()) is not None:
                self._group.append(first)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LINGER_S):
                        await self._full.wait()
                self._gather()
                self._full.clear()
                await self._write()
        except asyncio.CancelledError:
            self._gather()
            with contextlib.suppress(StoreUnavailable, LeaseLost):
                await self._write()
            raise

    def _gather(self) -> None:
        while len(self._group) < GROUP and not self._queue.empty():
            result = self._queue.get_nowait()
            if result is None:
                self._queue.put_nowait(None)
                return
            self._group.append(result)

    async def _write(self) -> None:
        if self._group:
            await self.store(self._group)
            self._group = []

    async def store(self, results: Sequence[LineResult], *, expired: bool = False) -> None:
        """Write results at once, all or none. One that the database cannot hold becomes an error of its line."""
        try:
            await self._batches.record(self._batch_id, self._worker, results)
        except Unstorable:
            if len(results) == 1:
                refused = InternalError("The server cannot store the result of this line.")
                results = [_failed(results[0].line, "", refused)]
                await self._batches.record(self._batch_id, self._worker, results)
            else:
                for result in results:
                    await self.store([result], expired=expired)
                return
        failed = sum(result.failed for result in results)
        counts = {"expired": failed} if expired else {"completed": len(results) - failed, "failed": failed}
        publish(LinesDone(self._batch_id, **counts))


def _failed(line: int, custom_id: str, error: GuardError) -> LineResult:
    return LineResult(line, failed=True, document=answered_line(custom_id, error.status, error_body(error)))


def _expired(lines: Sequence[Line]) -> list[LineResult]:
    return [LineResult(line.number, failed=True, document=expired_line(_custom_id(line))) for line in lines]


def _custom_id(line: Line) -> str:
    """The line's custom_id, empty for a line that cannot be read any more."""
    try:
        return request_of(line)[0]
    except ENDS:
        raise
    except BaseException:
        return ""


def _handling(batch: Batch, line: Line) -> Handling:
    return Handling(
        tenant=batch.owner or None,
        never_remote=batch.never_remote,
        finished_prompts=batch.finished_prompts,
        background=True,
        reading=Reading(batch.owner, len(line.content or b"")),
        request_id=batch.id,
        endpoint=batch.endpoint,
    )


def wait_after(failures: int) -> float:
    """Seconds before another try, doubled each time up to LONGEST_WAIT_S."""
    return min(LONGEST_WAIT_S, 0.25 * 2.0 ** min(failures, 6))


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do `work`, but cancel it as soon as `stop` is set. Returns whether it was finished."""
    if stop.is_set():
        work.close()
        return False
    task, stopped = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return True
        return False
    finally:
        await ended(task, stopped)


def _cause(error: BaseException) -> BaseException:
    """The first error of a group of tasks."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _place(error: BaseException) -> str:
    """The place of an error. Its message may hold content, so it is not logged."""
    return "".join(traceback.format_tb(error.__traceback__))
