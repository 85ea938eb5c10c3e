"""Routes for operators and their machines: alive, ready, metrics."""

from typing import Literal, NotRequired

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from server.api.http.description import reply
from server.api.http.dialect import Dialect
from server.api.http.shapes import Closed
from server.api.http.state import served
from server.backends.fallback import parts
from server.observation import metrics

router = APIRouter(tags=["operations"])

DIALECT = Dialect([router])


class Health(Closed):
    status: Literal["alive", "dead"]


class Ready(Closed):
    status: Literal["ready", "not ready"]
    reason: NotRequired[str]
    model: str
    stand_in: bool


@router.get(
    "/health",
    summary="Alive, or 503 if only a restart can help",
    responses={200: reply(Health, "Alive"), 503: reply(Health, "Dead")},
)
async def health(request: Request) -> JSONResponse:
    alive = served(request).readiness.alive
    document: Health = {"status": "alive" if alive else "dead"}
    return JSONResponse(document, status_code=200 if alive else 503)


@router.get(
    "/ready",
    summary="Ready, or 503 if the engine gave no verdict recently",
    responses={200: reply(Ready, "Ready"), 503: reply(Ready, "Not ready, and why")},
)
async def ready(request: Request) -> JSONResponse:
    here = served(request)
    reason, judge = here.readiness.reason_not_ready(), here.judges[0]
    document: Ready
    if reason is None:
        document = {"status": "ready", "model": judge.model, "stand_in": judge.stand_in}
        return JSONResponse(document)
    document = {"status": "not ready", "reason": reason, "model": judge.model, "stand_in": judge.stand_in}
    return JSONResponse(document, status_code=503)


@router.get("/metrics", summary="Prometheus metrics, vLLM's own included", response_class=Response)
async def prometheus(request: Request) -> Response:
    here = served(request)
    moderator = here.service.moderator
    metrics.READY.set(here.readiness.reason_not_ready() is None)
    metrics.ADMITTED.set(moderator.admission.admitted)
    backends = parts(moderator.backend)
    for backend in backends:
        metrics.ALIVE.labels(backend.name).set(backend.alive)
    if not here.readiness.alive:  # it may hang, which the backend itself does not know
        metrics.ALIVE.labels(backends[0].name).set(False)
    metrics.MODEL.clear()  # an earlier application in this process may have served other models
    for judge in here.judges:
        stand_in = str(judge.stand_in).lower()
        metrics.MODEL.labels(judge.model, judge.backend, judge.profile, stand_in).set(1)
    here.charge()
    metrics.compare_costs(backend.name for backend in backends)
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
