"""`python -m server serve`: the application in uvicorn, from the first line on the console to the drained end."""

import gc
import logging
import math
import signal
import socket
from collections.abc import Sequence
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
from server.settings import API_KEY_VARIABLE, Settings
from server.store.database import DatabaseError

log = logging.getLogger(__name__)

NEW_OBJECTS = 20_000
"""Garbage collection starts once there are so many more objects than after the last one. With Python's default of 700
it ran twice in each step of the engine: 42 us of the 565 that a request took in this process, with 32 at once."""


class Server(uvicorn.Server):
    """Uvicorn that logs when it is ready, and is not ready from the moment of a stop signal."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # First the server admits nothing new, and /ready says so. Then uvicorn lets admitted requests finish. Its own
        # handler would raise the signal again at the end, and kill this process before the engine is closed.
        self._served.service.drain()
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

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
            timeout_graceful_shutdown=math.ceil(settings.drain_timeout),
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
