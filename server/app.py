"""Wiring: settings and a backend to a FastAPI application, and its life from loading to drained."""

import asyncio
import contextlib
import hashlib
import math
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from fastapi import APIRouter, FastAPI
from fastapi.responses import RedirectResponse
from fastapi_offline import FastAPIOffline
from starlette.routing import BaseRoute

from server import __version__
from server.api import moderations, openapi, operations
from server.api.http import errors
from server.api.http.access import Access
from server.api.http.budget import BodyBudget
from server.api.http.dialect import Dialect
from server.api.http.direct import direct_apps
from server.api.http.errors import ErrorShapes
from server.api.http.hosts import Hosts
from server.api.http.limits import Limits
from server.api.http.methods import HeadAsGet, Replies
from server.api.http.middleware import RequestContext
from server.api.http.paths import ClientPaths
from server.api.http.state import Served
from server.api.litellm import guardrail as litellm
from server.api.llama import shields
from server.api.names import ModelNames
from server.api.openai import dialect as openai
from server.api.openrouter import dialect as openrouter
from server.api.service import Service
from server.audit.ledger import SERVER, ledger_of
from server.audit.records import Facts
from server.backends.base import Backend
from server.backends.fallback import parts
from server.batches.runner import BatchRunner
from server.checkpoints.profile import Profile
from server.domain.aio import ended
from server.domain.errors import OperatorError
from server.domain.policy import Policy
from server.families.base import family_named
from server.images import ImageDecoder
from server.loading import operator_policy
from server.moderation.judges import judges_of, sight_of
from server.moderation.moderator import Moderator
from server.moderation.readiness import Readiness
from server.moderation.verdict_cache import VerdictCache
from server.observation import logs, metrics  # noqa: F401 - both listen to events from their import on
from server.settings import Settings
from server.store.batches import Batches
from server.store.database import database_of
from server.store.keys import Keyring
from server.store.pepper import pepper_of
from server.store.retention import Retention

if TYPE_CHECKING:
    from server.observation.spans import Spans

Said = TypeVar("Said")

DESCRIPTION = (
    "Llama Guard 4 on your own machine, behind OpenAI's endpoints. Every answer is a checked verdict or an error:"
    " what the model did not clearly say is never called safe."
)
DIALECTS: tuple[Dialect, ...] = (
    openai.DIALECT,
    moderations.DIALECT,
    operations.DIALECT,
    openrouter.DIALECT,
    litellm.DIALECT,
    shields.DIALECT,
)
"""All dialects. A new one is a folder, and a line here."""

CHARACTERS_PER_TOKEN = 20
"""More characters than a token has on average in any text, except endless lines of one character."""

TOKENS_PER_MARK = 3
"""The fewest tokens of a mark in a text that looks like a conversation: its words and the quotation marks around it."""

STAND_IN = "\n\n**The model served here, {model}, is a stand-in, not a moderator: do not put it in front of users.**"


def create_moderator(settings: Settings, profile: Profile, backend: Backend) -> Moderator:
    """The moderator with its limits. Raises InvalidRequest if the operator's policy contradicts the profile."""
    policy, limits = operator_policy(settings, profile), settings.image_limits
    family = family_named(profile.family)
    return Moderator(
        backend,
        ImageDecoder(replace(limits, max_images=min(limits.max_images, profile.image_limit)), family.pictures),
        policy,
        max_queue=settings.places,
        list_concurrency=settings.list_concurrency,
        deadline_s=settings.deadline,
        max_characters=profile.context_tokens * CHARACTERS_PER_TOKEN,
        most_marks=profile.context_tokens // TOKENS_PER_MARK,
        served=repr((_facts(profile, policy, settings), profile.chat_template)),
        cache=VerdictCache(settings.verdict_cache, settings.verdict_cache_ttl),
    )


def create_app(settings: Settings, profile: Profile, backend: Backend) -> FastAPI:
    """The application. Its start-up starts `backend`, its shutdown closes it."""
    moderator = create_moderator(settings, profile, backend)
    served = _served(settings, profile, moderator)
    spans = _spans(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        try:
            await served.database.open()
            if served.database.opened_alone:  # now, before another server begins to work on the same batches
                await Batches(served.database).release_all()
            if served.service.ledger is not None:
                await served.service.ledger.open()
            if spans is not None:
                spans.listen()
            await served.access.open()
            await backend.start()
            await moderator.probe()
            runner = BatchRunner(served.database, served.service, served.readiness, served.batches_changed)
            retention = Retention(served.database, settings.retention)
            works = (served.readiness.watch(), runner.run(), retention.run())
            background = [asyncio.create_task(work) for work in works]
            try:
                yield
            finally:
                await ended(*background)
        finally:
            # Also if the start failed: a half-started engine holds memory too.
            moderator.close()
            await backend.close()
            await served.access.close()
            if served.service.ledger is not None:
                await served.service.ledger.close()
            if spans is not None:
                await asyncio.to_thread(spans.close)
            await served.database.close()

    # Swagger UI is served from this machine: the page loads nothing from elsewhere.
    # A URL with an extra slash does not redirect either: the address would come from the caller's Host header.
    app = FastAPIOffline(
        title="llama-guard-server",
        version=__version__,
        description=DESCRIPTION + _warning(served),
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.served = served
    for dialect in DIALECTS:
        app.router.routes.extend(_routes_of(dialect))
    app.add_api_route("/", lambda: RedirectResponse("/docs"), include_in_schema=False)
    errors.install(app, served.errors)
    openapi.describe(app, served.service.names)
    app.add_middleware(HeadAsGet)
    app.add_middleware(RequestContext, served=served, direct=direct_apps(app.routes))
    app.add_middleware(ClientPaths)
    app.add_middleware(Replies)
    return app


@cache
def _routes_of(dialect: Dialect) -> Sequence[BaseRoute]:
    """Its routes, with the errors of their paths. Applications of one process share them: FastAPI takes a quarter of a
    second for those of all dialects."""
    complete, shapes = APIRouter(), _error_shapes()
    for router in dialect.routers:
        complete.include_router(router, responses=shapes.at(router.prefix).responses)
    return complete.routes


def _error_shapes() -> ErrorShapes:
    return ErrorShapes(_by_path(dialect.errors for dialect in DIALECTS))


def _served(settings: Settings, profile: Profile, moderator: Moderator) -> Served:
    backend, database = moderator.backend, database_of(settings)
    keyring = Keyring(database, pepper_of(settings)) if settings.needs_keys else None
    priced = settings.price_per_hour and settings.backend == "vllm"
    return Served(
        settings=settings,
        profile=profile,
        service=Service(
            moderator=moderator,
            names=ModelNames(profile, int(time.time()), settings.model_aliases),
            sight=sight_of(settings, profile, backend),
            family=family_named(profile.family),
            taxonomy=profile.taxonomy,
            settings=settings,
            fingerprint=_fingerprint(profile, moderator.policy, settings),
            ledger=ledger_of(settings, SERVER, _audited_facts(settings, profile)),
        ),
        readiness=_readiness(settings, moderator, keyring),
        judges=judges_of(settings, profile, backend),
        access=Access(
            keyring,
            Hosts(settings.allowed_hosts, needs_keys=settings.needs_keys),
            _by_path(dialect.scopes for dialect in DIALECTS),
        ),
        limits=Limits(moderator.admission, profile.context_tokens),
        body_budget=BodyBudget(4 * settings.max_body_bytes),
        errors=_error_shapes(),
        database=database,
        charge=metrics.LocalCost(parts(backend)[0].name, settings.price_per_hour).count if priced else _free_of_charge,
    )


def _spans(settings: Settings) -> "Spans | None":
    """None without a collector: then nothing of OpenTelemetry is even imported. Raises OperatorError."""
    if not settings.otlp_endpoint:
        return None
    try:
        from server.observation.spans import Spans
    except ImportError:
        raise OperatorError(
            "GUARD_OTLP_ENDPOINT needs OpenTelemetry. Install the extra `otel`, or leave the setting empty."
        ) from None
    return Spans.to(settings.otlp_endpoint, __version__)


def _readiness(settings: Settings, moderator: Moderator, keyring: Keyring | None) -> Readiness:
    return Readiness(
        moderator,
        probe_interval_s=settings.probe_interval,
        max_age_s=settings.ready_max_age,
        # A restart would not bring a remote back.
        hung_after_s=settings.hung_after if settings.backend == "vllm" else math.inf,
        conditions=() if keyring is None else (keyring.reason_not_ready,),
    )


def _free_of_charge() -> None:
    """For a local backend without a price. A remote backend reports its own charges."""


def _by_path(said: Iterable[Mapping[str, Said]]) -> dict[str, Said]:
    """The entries of all dialects together. Two dialects must not have an entry for the same path."""
    together: dict[str, Said] = {}
    for each in said:
        assert together.keys().isdisjoint(each), "two dialects claim one path"
        together.update(each)
    return together


def _warning(served: Served) -> str:
    judge = served.judges[0]
    return STAND_IN.format(model=judge.model) if judge.stand_in else ""


def _fingerprint(profile: Profile, policy: Policy, settings: Settings) -> str:
    """Changes whenever the same request could be judged differently."""
    return f"fp_{hashlib.sha256(_facts(profile, policy, settings).encode()).hexdigest()[:10]}"


def _audited_facts(settings: Settings, profile: Profile) -> Facts | None:
    if not settings.audit:
        return None  # to hash the code takes milliseconds
    return Facts.of(repr(_who_judges(profile, settings)), profile.chat_template)


def _facts(profile: Profile, policy: Policy, settings: Settings) -> str:
    """Everything except the request that decides its verdict."""
    model, remote = _who_judges(profile, settings)
    choices = (policy, settings.image_limits, settings.finished_prompts, settings.unseen_images)
    return repr((__version__, model, choices, remote))


def _who_judges(profile: Profile, settings: Settings) -> tuple[tuple[object, ...], tuple[str, ...] | None]:
    """What identifies the local model, and the remote one if there is one."""
    model = (profile.name, profile.family, profile.model, profile.revision, dict(profile.engine))
    return model, (settings.backend, settings.fallback, settings.openrouter_model) if settings.is_remote else None
