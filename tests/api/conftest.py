"""The application on a fake backend: in this process for most tests, behind a real socket where that matters."""

import contextlib
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from server.app import create_app
from server.checkpoints.profile import load_profile
from server.commands import serve as serving
from server.domain.caller import ANYONE
from server.moderation.moderator import Moderator
from server.settings import Settings
from tests.fakes import FakeBackend

PROFILE = "llama-guard-4-12b"


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def settings(request: pytest.FixtureRequest) -> Settings:
    """Defaults, or what a test says with @pytest.mark.parametrize("settings", [{...}], indirect=True)."""
    return Settings(profile=PROFILE, **getattr(request, "param", {}))


@pytest_asyncio.fixture
async def app(settings: Settings, backend: FakeBackend) -> AsyncIterator[FastAPI]:
    """The started application."""
    app = create_app(settings, load_profile(settings.profile), backend)
    async with app.router.lifespan_context(app):
        yield app


@pytest_asyncio.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


class As:
    """Every request is of one caller, as if a key had been shown."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch

    def __call__(self, key: str, **changes: Any) -> None:
        self._monkeypatch.setattr("server.api.http.access.ANYONE", replace(ANYONE, id=key, **changes))


@pytest.fixture
def be(monkeypatch: pytest.MonkeyPatch) -> As:
    return As(monkeypatch)


@dataclass
class LiveServer:
    """What `llama-guard-server serve` runs, in a thread of this process and with the fake backend."""

    server: serving.Server
    thread: threading.Thread
    backend: FakeBackend

    @property
    def port(self) -> int:
        port: int = self.server.servers[0].sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def moderator(self) -> Moderator:
        app = self.server.config.app
        assert isinstance(app, FastAPI)
        moderator: Moderator = app.state.served.service.moderator
        return moderator

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=10)

    def terminate(self) -> None:
        """What a SIGTERM does."""
        self.server.handle_exit(signal.SIGTERM, None)


StartServer = Callable[..., LiveServer]


@pytest.fixture
def start_server(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> Iterator[StartServer]:
    """Starts a server with the given settings; it is stopped when the test ends."""
    with contextlib.ExitStack() as stack:

        def start(**changes: Any) -> LiveServer:
            servers: list[serving.Server] = []

            class KnownServer(serving.Server):
                def __init__(self, *arguments: Any) -> None:
                    super().__init__(*arguments)
                    servers.append(self)

                def _end_in_any_case(self) -> None:
                    """It would end the tests."""

            monkeypatch.setattr(serving, "Server", KnownServer)
            # The loggers of this process are the tests'.
            monkeypatch.setattr("server.observation.lines.set_up", lambda level, form: None)
            monkeypatch.setattr(serving, "load_backend", lambda settings, profile: backend)
            settings = Settings(profile=PROFILE, port=0, **{"drain_timeout": 3, **changes})
            thread = threading.Thread(target=serving.serve, args=[settings])
            thread.start()
            wait_until(lambda: bool(servers and servers[0].started))
            live = LiveServer(servers[0], thread, backend)
            stack.callback(stop, live)
            return live

        yield start


def stop(live: LiveServer) -> None:
    live.server.should_exit = True
    live.thread.join(10)
    assert not live.thread.is_alive()


@pytest.fixture
def live(start_server: StartServer) -> LiveServer:
    return start_server()


def wait_until(condition: Callable[[], bool], within: float = 30.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within} s"
        time.sleep(0.005)
