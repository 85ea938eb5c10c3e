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
from server.api import examples, moderations, operations
from server.api.http import errors
from server.api.http.access import Access
from server.api.http.body import BodyBudget
from server.api.http.direct import direct_apps
from server.api.http.limits import Limits
from server.api.http.middleware import RequestContext
from server.api.http.paths import ClientPaths
from server.api.litellm import guardrail as litellm
from server.api.openai import batches, chat, files, models, responses
from server.api.openrouter import account as openrouter_account
from server.api.openrouter import chat as openrouter_chat
from server.api.openrouter import generations as openrouter_generations
from server.api.openrouter import models as openrouter_models
from server.api.openrouter.naming import slug_of
from server.api.service import Service
from server.backends.base import Backend
from server.backends.fallback import parts
from server.batches.runner import BatchRunner
from server.checkpoints.profile import Profile
from server.domain.policy import Policy
from server.families.base import family_named
from server.families.llama_guard.pictures import SIZES
from server.images import ImageDecoder
from server.loading import operator_policy
from server.moderation.judges import judges_of, sight_of
from server.moderation.moderator import Moderator
from server.moderation.readiness import Readiness
from server.moderation.verdict_cache import VerdictCache
from server.observation import logs, metrics  # noqa: F401 - both listen to events from their import on
from server.settings import Settings
from server.store.batches import Batches
from server.store.database import Database
from server.store.files import Files
from server.store.keys import Keyring
from server.store.pepper import pepper_of

DESCRIPTION = (
    "Llama Guard 4 on your own machine, behind OpenAI's endpoints. Every answer is a checked verdict or an error:"
    " what the model did not clearly say is never called safe."
)
CHARACTERS_PER_TOKEN = 64
"""More than tokens have on average in any text but endless rulers and blanks."""

STAND_IN = "\n\n**The model served here, {model}, is a stand-in, not a moderator: do not put it in front of users.**"


def create_moderator(settings: Settings, profile: Profile, backend: Backend) -> Moderator:
    """The heart with its limits. Raises InvalidRequest when the operator's policy contradicts the profile."""
    policy, limits = operator_policy(settings, profile), settings.image_limits
    return Moderator(
        backend,
        ImageDecoder(replace(limits, max_images=min(limits.max_images, profile.image_limit)), SIZES),
        policy,
        max_queue=settings.places,
        list_concurrency=settings.list_concurrency,
        deadline_s=settings.deadline,
        max_characters=profile.context_tokens * CHARACTERS_PER_TOKEN,
        served=repr((_facts(profile, policy, settings), profile.chat_template)),
        cache=VerdictCache(settings.verdict_cache, settings.verdict_cache_ttl),
    )


def create_app(settings: Settings, profile: Profile, backend: Backend) -> FastAPI:
    """The application. Its start-up starts `backend`, its shutdown closes it."""
    moderator = create_moderator(settings, profile, backend)
    readiness = Readiness(moderator, probe_interval_s=settings.probe_interval, max_age_s=settings.ready_max_age)

    judges, sight = judges_of(settings, profile, backend), sight_of(settings, profile, backend)
    database = Database(settings.database)
    access = Access(Keyring(database, pepper_of(settings)) if settings.needs_keys else None)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            await database.open()
            if database.opened_alone:  # now, before another server comes to work beside this one
                await app.state.batches.release_all()
            await access.open()
            await backend.start()
            await moderator.probe()
            runner = BatchRunner(database, app.state.service, readiness, app.state.batches_changed)
            background = [asyncio.create_task(readiness.watch()), asyncio.create_task(runner.run())]
            try:
                yield
            finally:
                for task in background:
                    task.cancel()
                await asyncio.gather(*background, return_exceptions=True)
        finally:
            # Also when the start failed: half of an engine holds its memory too.
            moderator.close()
            await backend.close()
            await access.close()
            await database.close()

    # Swagger UI is served from this machine: the page loads nothing from elsewhere.
    # Nor does a URL with a slash too many redirect: the address would be what the caller's Host header says.
    app = FastAPIOffline(
        title="llama-guard-server",
        version=__version__,
        description=DESCRIPTION + (STAND_IN.format(model=judges[0].model) if judges[0].stand_in else ""),
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.settings = settings
    app.state.database = database
    app.state.access = access
    app.state.limits = Limits(moderator.admission, profile.context_tokens)
    app.state.files = Files(database)
    app.state.uploads = asyncio.Semaphore(files.UPLOADS_AT_ONCE)
    app.state.batches = Batches(database)
    app.state.batches_changed = asyncio.Event()
    app.state.moderator = moderator
    app.state.judges = judges
    app.state.readiness = readiness
    local = parts(backend)[0].name
    priced = settings.price_per_hour and settings.backend == "vllm"
    app.state.local_cost = metrics.LocalCost(local, settings.price_per_hour) if priced else None
    app.state.body_budget = BodyBudget(4 * settings.max_body_bytes)
    app.state.model_names = models.ModelNames(profile, int(time.time()), settings.model_aliases)
    app.state.service = Service(
        moderator=moderator,
        names=app.state.model_names,
        sight=sight,
        family=family_named(profile.family),
        taxonomy=profile.taxonomy,
        settings=settings,
        fingerprint=_fingerprint(profile, moderator.policy, settings),
    )
    app.state.generations = openrouter_generations.Generations()
    slug = slug_of(app.state.model_names)
    app.state.model_card = openrouter_models.ModelCard(profile, slug, app.state.model_names.created, sees=sight.sees)
    errors.install(app)
    app.add_middleware(RequestContext)
    for router in (
        chat.router,
        responses.router,
        moderations.router,
        models.router,
        files.router,
        batches.router,
        operations.router,
    ):
        app.include_router(router)
    for dialect in (openrouter_chat, openrouter_models, openrouter_generations, openrouter_account, litellm):
        app.include_router(dialect.router)
    app.state.direct = direct_apps(app.routes)
    app.add_api_route("/", lambda: RedirectResponse("/docs"), include_in_schema=False)
    examples.describe(app, app.state.model_names.id, slug)
    app.add_middleware(ClientPaths)
    return app


def _fingerprint(profile: Profile, policy: Policy, settings: Settings) -> str:
    """Changes whenever the same request could be judged differently."""
    return f"fp_{hashlib.sha256(_facts(profile, policy, settings).encode()).hexdigest()[:10]}"


def _facts(profile: Profile, policy: Policy, settings: Settings) -> str:
    """All that decides how the same request is judged."""
    model = (profile.name, profile.family, profile.model, profile.revision, dict(profile.engine))
    choices = (policy, settings.image_limits, settings.finished_prompts, settings.unseen_images)
    remote = (settings.backend, settings.fallback, settings.openrouter_model) if settings.is_remote else None
    return repr((__version__, model, choices, remote))
