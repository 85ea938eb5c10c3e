"""Money in OpenRouter's format."""

from typing import Annotated, Literal

from pydantic import Field

Dollars = Annotated[float, Field(ge=0)]
Nothing = Annotated[float, Field(ge=0, le=0)]
ZeroDollars = Literal["0"]
