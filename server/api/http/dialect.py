"""A dialect as the application includes it: its routes, their scopes and the shape of their errors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fastapi import APIRouter

from server.api.http.errors import ErrorShape
from server.domain.caller import Scope


@dataclass(frozen=True, slots=True, eq=False)
class Dialect:
    """The routes of one dialect.

    `scopes` maps a path to the scope that it and all paths below it need. A path without an entry needs ADMIN.
    `errors` maps a path to the shape of errors on it and all paths below it, if that is not the usual one.
    """

    routers: Sequence[APIRouter]
    scopes: Mapping[str, Scope] = field(default_factory=dict)
    errors: Mapping[str, ErrorShape] = field(default_factory=dict)
