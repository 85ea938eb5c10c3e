"""Wiring: settings and a backend to a FastAPI application, and its life from loading to drained."""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace

from fastapi import FastAPI
from fastapi.responses import RedirectResponse
from fastapi_offline import FastAPIOffline

from server import __version__
from server.api import chat, errors, examples, models, moderations, operations
from server.api.body import BodyBudget
from server.api.middleware import RequestContext
from server.api.paths import ClientPaths
from server.api.service import Service
from server.backends.base import Backend
from server.images import ImageDecoder
from server.moderator import Moderator
from server.policy import Policy
from server.profile import Profile
from server.readiness import Readiness
from server.settings import Settings
from server.store.database import Database

DESCRIPTION = (
    "Llama Guard 4 on your own machine, behind OpenAI's endpoints. Every answer is a checked verdict or an error:"
    " what the model did not clearly say is never called safe."
)


def create_moderator(settings: Settings, profile: Profile, backend: Backend) -> Moderator:
    """The heart with its limits. Raises InvalidRequest when the operator's policy contradicts the profile."""
    policy = Policy(profile.taxonomy).narrowed(excluded=settings.excluded_categories, threshold=settings.threshold)
    limits = settings.image_limits
    return Moderator(
        backend,
        ImageDecoder(replace(limits, max_images=min(limits.max_images, profile.image_limit))),
        policy,
        max_queue=settings.max_queue,
        list_concurrency=settings.list_concurrency,
        deadline_s=settings.deadline,
        minimum_mass=settings.minimum_verdict_mass,
    )


def create_app(settings: Settings, profile: Profile, backend: Backend) -> FastAPI:
    """The application. Its start-up starts `backend`, its shutdown closes it."""
    moderator = create_moderator(settings, profile, backend)
    readiness = Readiness(moderator, probe_interval_s=settings.probe_interval, max_age_s=settings.ready_max_age)

    database = Database(settings.database)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            await database.open()
            await backend.start()
            await moderator.probe()
            watch = asyncio.create_task(readiness.watch())
            try:
                yield
            finally:
                watch.cancel()
                await asyncio.gather(watch, return_exceptions=True)
        finally:
            # Also when the start failed: half of an engine holds its memory too.
            moderator.close()
            backend.close()
            await database.close()

    # Swagger UI is served from this machine: the page loads nothing from elsewhere.
    # Nor does a URL with a slash too many redirect: the address would be what the caller's Host header says.
    app = FastAPIOffline(
        title="llama-guard-server",
        version=__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.settings = settings
    app.state.database = database
    app.state.moderator = moderator
    app.state.readiness = readiness
    app.state.body_budget = BodyBudget(4 * settings.max_body_bytes)
    app.state.model_names = models.ModelNames(profile, created=int(time.time()))
    app.state.service = Service(
        moderator=moderator,
        names=app.state.model_names,
        settings=settings,
        fingerprint=_fingerprint(profile, moderator.policy, settings),
    )
    errors.install(app)
    app.add_middleware(RequestContext)
    for router in (chat.router, moderations.router, models.router, operations.router):
        app.include_router(router)
    app.add_api_route("/", lambda: RedirectResponse("/docs"), include_in_schema=False)
    examples.describe(app)
    app.add_middleware(ClientPaths)
    return app


def _fingerprint(profile: Profile, policy: Policy, settings: Settings) -> str:
    """Changes whenever the same request could be judged differently."""
    model = (profile.name, profile.model, profile.revision, dict(profile.engine))
    choices = (policy, settings.minimum_verdict_mass, settings.category_scores, settings.image_limits)
    facts = repr((__version__, model, choices))
    return f"fp_{hashlib.sha256(facts.encode()).hexdigest()[:10]}"
