"""What operators and their machines ask: alive, ready, metrics."""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from server.backends.fallback import parts
from server.moderation.judges import Judge
from server.moderation.readiness import Readiness
from server.observation import metrics

router = APIRouter(tags=["operations"])


@router.get("/health", summary="Alive: 503 once only a restart can help")
async def health(request: Request) -> JSONResponse:
    readiness: Readiness = request.app.state.readiness
    alive = readiness.alive
    return JSONResponse({"status": "alive" if alive else "dead"}, status_code=200 if alive else 503)


@router.get("/ready", summary="Ready: a verdict came through the engine a moment ago")
async def ready(request: Request) -> JSONResponse:
    readiness: Readiness = request.app.state.readiness
    reason = readiness.reason_not_ready()
    judge: Judge = request.app.state.judges[0]
    judging = {"model": judge.model, "stand_in": judge.stand_in}
    if reason is None:
        return JSONResponse({"status": "ready", **judging})
    return JSONResponse({"status": "not ready", "reason": reason, **judging}, status_code=503)


@router.get("/metrics", summary="Prometheus metrics, vLLM's own included", response_class=Response)
async def prometheus(request: Request) -> Response:
    readiness: Readiness = request.app.state.readiness
    metrics.READY.set(readiness.reason_not_ready() is None)
    metrics.ADMITTED.set(request.app.state.moderator.admission.admitted)
    backends = parts(request.app.state.moderator.backend)
    for backend in backends:
        metrics.ALIVE.labels(backend.name).set(backend.alive)
    metrics.MODEL.clear()  # an application that was served from this process before may have had others
    for judge in request.app.state.judges:
        stand_in = str(judge.stand_in).lower()
        metrics.MODEL.labels(judge.model, judge.backend, judge.profile, stand_in).set(1)
    if request.app.state.local_cost is not None:
        request.app.state.local_cost.count()
    metrics.compare_costs(backend.name for backend in backends)
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
