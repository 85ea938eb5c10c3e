"""The base of the TypedDicts that describe replies. mypy checks each reply against its type.

The OpenAPI document is made from the same types. They cost nothing at run time. `Annotated` holds facts that only the
document needs.
"""

from typing import Annotated, Any

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict  # pydantic reads typing's own from Python 3.12 on


class Closed(TypedDict):
    """Base of all replies: every key that is not NotRequired is present, and there are no other keys."""


# Below the class: within it mypy takes this for a key.
Closed.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]


Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Moment = Annotated[int, Field(ge=0, description="Seconds since 1970.")]
EmptyList = Annotated[list[Any], Field(max_length=0)]
EmptyObject = Annotated[dict[str, Any], Field(max_length=0)]
