"""GET /v1/models in OpenAI's dialect."""

from typing import Literal

from fastapi import APIRouter, Request

from server.api.http.description import reply
from server.api.http.direct import JSONReply
from server.api.http.shapes import Closed, Count, Moment
from server.api.http.state import Served, served
from server.api.names import PROVIDER

router = APIRouter(prefix="/v1", tags=["models"])


class Model(Closed):
    id: str
    object: Literal["model"]
    created: Moment
    owned_by: str
    context_length: Count


class ModelList(Closed):
    object: Literal["list"]
    data: list[Model]


@router.get("/models", summary="List the served model", responses={200: reply(ModelList, "The one model")})
async def list_models(request: Request) -> JSONReply:
    document: ModelList = {"object": "list", "data": [_model(served(request))]}
    return JSONReply(document)


@router.get(
    "/models/{name:path}",
    summary="Look up the served model by any of its names",
    responses={200: reply(Model, "The model under its own id")},
)
async def get_model(name: str, request: Request) -> JSONReply:
    here = served(request)
    here.service.names.check(name)
    return JSONReply(_model(here))


def _model(here: Served) -> Model:
    names = here.service.names
    return {
        "id": names.id,
        "object": "model",
        "created": names.created,
        "owned_by": PROVIDER,
        "context_length": here.profile.context_tokens,
    }
