"""`llama-guard-server serve`: the application in uvicorn, from the first line on the console to the drained end."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

import uvicorn
import uvloop
from fastapi import FastAPI

from server.api.http.connection import Connection
from server.api.http.state import Served, served_by
from server.app import create_app
from server.checkpoints.profile import load_profile
from server.domain.errors import GuardError, OperatorError
from server.loading import load_backend
from server.moderation.judges import Judge
from server.observation import lines
from server.settings import API_KEY_VARIABLE, Settings
from server.store.database import DatabaseError

log = logging.getLogger(__name__)

NEW_OBJECTS = 20_000
"""Garbage collection starts once there are so many more objects than after the last one. With Python's default of 700
it ran twice in each step of the engine: 42 us of the 565 that a request took in this process, with 32 at once."""


CLOSING_S = 4.0
"""Seconds after the drain in which everything must be closed. With the default drain that is 29 seconds from the signal
to the end: Kubernetes kills after 30."""

CUT_S = 0.5
"""Seconds for requests that are cut at the end of the drain to answer 503."""

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Server(uvicorn.Server):
    """Uvicorn that logs when it is ready, is not ready from the moment of a stop signal on, and always ends in time."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # First the server admits nothing new, and /ready says so. Then uvicorn lets admitted requests finish. Its own
        # handler would raise the signal again at the end, and kill this process before the engine is closed.
        if not self.should_exit:
            self._served.service.drain()
            self._end_in_any_case()
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    def _end_in_any_case(self) -> None:
        """End the process if its closing hangs, in a library or at a database that does not answer."""
        seconds = self._served.settings.drain_timeout + CLOSING_S
        last = threading.Timer(seconds, _end, args=[seconds])
        last.daemon = True
        last.start()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Uvicorn's, with SIGHUP. Unlike uvicorn it ignores what comes while the server closes, except Ctrl-C."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # nohup has SIGHUP ignored, and means it.
        stops = [stop for stop in STOPS if signal.getsignal(stop) is not signal.SIG_IGN]
        before = {stop: signal.signal(stop, self.handle_exit) for stop in stops}
        try:
            yield
        finally:
            for stop in stops:
                signal.signal(stop, before[stop] if stop == signal.SIGINT else signal.SIG_IGN)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Uvicorn's, except that requests which do not end within the drain are answered 503, or cut in their reply."""
        self._served.service.drain()  # for an end that no signal brought
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        state = self.server_state
        if await self._within(self._served.settings.drain_timeout, lambda: not state.connections and not state.tasks):
            return
        log.warning(
            "the drain is over: %d requests and %d connections are cut", len(state.tasks), len(state.connections)
        )
        for connection in list(state.connections):
            cycle = getattr(connection, "cycle", None)
            if cycle is None or cycle.response_started:
                connection.transport.abort()
        await asyncio.sleep(0)  # requests on these connections learn that nobody listens
        for task in list(state.tasks):
            task.cancel()
        await self._within(CUT_S, lambda: not state.tasks)
        for connection in list(state.connections):
            connection.transport.abort()

    async def _within(self, seconds: float, done: Callable[[], bool]) -> bool:
        """Wait for `done`, at most for so long. Returns whether it is. A second Ctrl-C ends the wait."""
        deadline = time.monotonic() + seconds
        while not (found := done()) and not self.force_exit and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        return found

    @property
    def _served(self) -> Served:
        app = self.config.app
        assert isinstance(app, FastAPI)
        return served_by(app)

    def _announce(self) -> None:
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        needs_key = self._served.access.needs_keys
        _say_who_judges(self._served.judges)
        condition = f" with your key in {API_KEY_VARIABLE}" if needs_key else ""
        log.info("ready at %s (documentation at %s/docs); try%s:", url, url, condition)
        key = f"""-H "Authorization: Bearer ${API_KEY_VARIABLE}" """ if needs_key else ""
        print(TRY.format(url=url, key=key), flush=True)  # noqa: T201


def _end(seconds: float) -> None:
    log.error("the server did not close within %g s and ends now", seconds)
    os._exit(1)


def _say_who_judges(judges: Sequence[Judge]) -> None:
    """The last lines before the address, so that nobody overlooks that the model is a stand-in."""
    for judge in judges:
        log.info("judging by %s (profile %s, backend %s)", judge.model, judge.profile, judge.backend)
        if judge.stand_in:
            words = f"{judge.model} is a stand-in, not a moderator: do not put it in front of users"
            for line in ("*" * (len(words) + 4), f"* {words} *", "*" * (len(words) + 4)):
                log.warning("%s", line)


TRY = (
    """curl -s {url}/v1/moderations {key}-H 'Content-Type: application/json' -d '{{"input": "How do I bake bread?"}}'"""
)


def serve(settings: Settings) -> int:
    """Serve until a signal. Returns the exit status. Raises OperatorError if serving cannot begin."""
    lines.set_up(settings.log_level, settings.log_format)
    profile = load_profile(settings.profile)
    for change in settings.changed_meanings:
        log.warning("%s See docs/upgrade.md.", change)
    _check_free(settings.host, settings.port)
    try:
        app = create_app(settings, profile, load_backend(settings, profile))
    except DatabaseError as error:
        raise OperatorError(str(error)) from error
    except GuardError as error:
        raise OperatorError(f"The settings contradict the profile {profile.name}: {error.message}") from error
    lines.adopt("uvicorn", "uvicorn.error", "uvicorn.access", "vllm")  # vLLM is imported by now
    if settings.is_remote:
        what = "EVERY request" if settings.backend == "openrouter" else "each request that the engine cannot judge now"
        log.warning("%s is sent to %s", what, settings.openrouter_url)
    if settings.backend == "vllm":
        log.info(
            "starting the engine for %s (%s; %d tokens of context, %s), this takes a while",
            profile.name,
            profile.description,
            profile.context_tokens,
            f"up to {profile.image_limit} images" if profile.images else "no images",
        )
    server = Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            # Nothing here depends on a proxy's information about the client.
            proxy_headers=False,
            server_header=False,
            # Longer than in the pools of clients and load balancers, or they would use a connection that just closed.
            timeout_keep_alive=75,
        )
    )

    async def run() -> None:
        # Entered here and not by uvicorn, which would hide the reason for a failed start in a traceback.
        async with app.router.lifespan_context(app):
            # All loaded objects stay, and to search them for garbage would pause every request. Requests leave no
            # garbage for it (tests/api/http/test_garbage.py).
            gc.collect()
            gc.freeze()
            gc.set_threshold(NEW_OBJECTS)
            await server.serve()

    try:
        uvloop.run(run())
    except GuardError as error:
        raise OperatorError(f"{profile.name} cannot be served: {error.message}") from error
    except DatabaseError as error:
        raise OperatorError(str(error)) from error
    return 0


def _check_free(host: str, port: int) -> None:
    """Fail before minutes of loading, not after them. Raises OperatorError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise OperatorError(
            f"Cannot listen on {host}:{port}: {error.strerror}. Choose another address with --host and --port,"
            " or with GUARD_HOST and GUARD_PORT."
        ) from error
