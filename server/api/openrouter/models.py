"""GET /api/v1/models and OpenRouter's related routes: the one model, its endpoint and its provider."""

from collections.abc import Iterable
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from pydantic import Field

from server.api.http.description import reply
from server.api.http.direct import JSONReply
from server.api.http.shapes import Closed, Count
from server.api.http.state import Served, served
from server.api.names import PROVIDER
from server.api.openrouter.card import ModelCard, ModelHead, OpenRouterModel, ServedEndpoint
from server.api.openrouter.errors import BAD_QUERY, NOT_FOUND
from server.api.openrouter.generations import Generations

router = APIRouter(prefix="/api/v1", tags=["OpenRouter"])


class OpenRouterModelData(Closed):
    data: OpenRouterModel


class PageLinks(Closed):
    next: None


class OpenRouterModelList(Closed):
    data: Annotated[list[OpenRouterModel], Field(max_length=1)]
    total_count: Count
    links: PageLinks


class ModelCount(Closed):
    count: Literal[0, 1]


class ModelCountData(Closed):
    data: ModelCount


class ModelEndpoints(ModelHead):
    endpoints: Annotated[list[ServedEndpoint], Field(min_length=1, max_length=1)]


class ModelEndpointsData(Closed):
    data: ModelEndpoints


class EndpointList(Closed):
    data: list[ServedEndpoint]


class Provider(Closed):
    name: str
    slug: str
    privacy_policy_url: None
    terms_of_service_url: None
    status_page_url: None
    headquarters: None
    datacenters: None


class ProviderList(Closed):
    data: list[Provider]


MODEL_LIST = {200: reply(OpenRouterModelList, "The model, unless a filter leaves it out"), **BAD_QUERY}


@router.get("/models", summary="List the served model", responses=MODEL_LIST)
@router.get("/models/user", summary="List the served model", responses=MODEL_LIST)
async def list_openrouter_models(
    request: Request,
    q: str | None = None,
    input_modalities: str | None = None,
    output_modalities: str | None = None,
    supported_parameters: str | None = None,
    category: str | None = None,
    context: int | None = Query(None, ge=1),
    offset: int | None = Query(None, ge=0),
    limit: int | None = Query(None, ge=1, le=1000),
) -> JSONReply:
    """The list is empty if the model does not meet a filter. Other filters and the order are ignored."""
    card = ModelCard.of(served(request))
    wanted = q is None or q.casefold() in f"{card.slug} {card.name}".casefold()
    meets = (
        wanted
        and category is None  # it is in none of OpenRouter's use cases
        and _holds(input_modalities, card.inputs)
        and (output_modalities == "all" or _holds(output_modalities, ["text"]))
        and _holds(supported_parameters, card.parameters)
        and (context is None or context <= card.document["context_length"])
    )
    found = [card.document] if meets else []
    page = found[offset or 0 :][: limit or None]
    document: OpenRouterModelList = {"data": page, "total_count": len(found), "links": {"next": None}}
    return JSONReply(document)


@router.get(
    "/models/count", summary="How many models there are", responses={200: reply(ModelCountData, "One, or none")}
)
async def count_openrouter_models(output_modalities: str | None = None) -> JSONReply:
    matches = output_modalities == "all" or _holds(output_modalities, ["text"])
    document: ModelCountData = {"data": {"count": 1 if matches else 0}}
    return JSONReply(document)


@router.get(
    "/model/{author}/{slug}",
    summary="Get the served model",
    responses={200: reply(OpenRouterModelData, "The model"), **NOT_FOUND},
)
async def get_openrouter_model(author: str, slug: str, request: Request) -> JSONReply:
    document: OpenRouterModelData = {"data": _card(request, author, slug).document}
    return JSONReply(document)


@router.get(
    "/models/{author}/{slug}/endpoints",
    summary="List the endpoints of a model, with their performance",
    responses={200: reply(ModelEndpointsData, "The model and its one endpoint"), **NOT_FOUND},
)
async def list_openrouter_endpoints(author: str, slug: str, request: Request) -> JSONReply:
    card = _card(request, author, slug)
    document: ModelEndpointsData = {"data": {**card.head, "endpoints": [_endpoint(card, served(request))]}}
    return JSONReply(document)


@router.get(
    "/endpoints/zdr",
    summary="List the endpoints that keep no data",
    responses={200: reply(EndpointList, "This server, unless its remote backend may keep data")},
)
async def list_openrouter_zdr_endpoints(request: Request) -> JSONReply:
    here = served(request)
    # A provider of the remote backend may keep data.
    keeps_data = here.settings.is_remote and not here.settings.openrouter_zdr
    document: EndpointList = {"data": [] if keeps_data else [_endpoint(ModelCard.of(here), here)]}
    return JSONReply(document)


@router.get(
    "/providers",
    summary="List this server as a provider",
    responses={200: reply(ProviderList, "The one provider")},
)
async def list_openrouter_providers() -> JSONReply:
    document: ProviderList = {
        "data": [
            {
                "name": PROVIDER,
                "slug": PROVIDER,
                "privacy_policy_url": None,
                "terms_of_service_url": None,
                "status_page_url": None,
                "headquarters": None,
                "datacenters": None,
            }
        ]
    }
    return JSONReply(document)


def _card(request: Request, author: str, slug: str) -> ModelCard:
    card = ModelCard.of(served(request))
    card.names.check(f"{author}/{slug}")
    return card


def _endpoint(card: ModelCard, here: Served) -> ServedEndpoint:
    return card.endpoint(here.kept(Generations), ready=here.readiness.reason_not_ready() is None)


def _holds(wanted: str | None, available: Iterable[str]) -> bool:
    return wanted is None or {word.strip() for word in wanted.split(",") if word.strip()} <= set(available)
