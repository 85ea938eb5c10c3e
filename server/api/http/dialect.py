"""What a folder of routes tells the application about itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fastapi import APIRouter

from server.api.http.errors import ErrorShape
from server.domain.caller import Scope


@dataclass(frozen=True, slots=True)
class Dialect:
    """Routes that speak alike. `scopes` says which scope a path and all below it need: a path without one needs ADMIN.

    `errors` says how errors are worded at a path and below it, where they have another shape than the usual one.
    """

    routers: Sequence[APIRouter]
    scopes: Mapping[str, Scope] = field(default_factory=dict)
    errors: Mapping[str, ErrorShape] = field(default_factory=dict)
