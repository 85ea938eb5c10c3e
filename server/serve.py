"""`python -m server serve`: the application behind uvicorn, from the first word on the console to the drained end."""

import logging
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from server.app import create_app
from server.loading import load_backend
from server.profile import load_profile
from server.settings import Settings

log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """Uvicorn, which says when it is ready, and which is not ready from the moment it is told to stop."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            self._announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # First nothing new is admitted and /ready says so, then uvicorn lets what was admitted finish.
        app = self.config.app
        assert isinstance(app, FastAPI)
        app.state.moderator.admission.draining = True
        super().handle_exit(sig, frame)

    def _announce(self) -> None:
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        log.info("ready at %s (documentation at %s/docs). Try:", url, url)
        log.info(
            "curl -s %s/v1/moderations -H 'Content-Type: application/json' -d '{\"input\": \"How do I bake bread?\"}'",
            url,
        )


def serve(settings: Settings) -> int:
    """Serve until a signal. Returns the exit status; raises ProfileError when serving cannot begin."""
    profile = load_profile(settings.profile)
    app = create_app(settings, profile, load_backend(settings, profile))
    log.info(
        "starting the engine for %s (%d tokens of context, %s); this takes a while",
        profile.name,
        profile.context_tokens,
        f"up to {profile.image_limit} images" if profile.images else "no images",
    )
    server = Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            loop="uvloop",
            http="httptools",
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=round(settings.drain_timeout),
        )
    )
    server.run()
    return 0 if server.started else 2
