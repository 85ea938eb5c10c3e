"""Tokens and their log-probabilities, as OpenAI's endpoints write them."""

from typing import Annotated

from pydantic import Field

from server.api.http.shapes import Closed
from server.domain.verdict import Token

LEAST_LOGPROB = -9999.0
"""OpenAI's number for a token with practically no probability. JSON has no minus infinity."""

MAX_ALTERNATIVES = 20


class BareToken(Closed):
    token: str
    logprob: Annotated[float, Field(le=0)]
    bytes: list[Annotated[int, Field(ge=0, le=255)]]


class TokenLogprob(BareToken):
    top_logprobs: Annotated[list[BareToken], Field(max_length=MAX_ALTERNATIVES)]


def entry(token: Token) -> TokenLogprob:
    return {**_bare(token), "top_logprobs": [_bare(alternative) for alternative in token.alternatives]}


def _bare(token: Token) -> BareToken:
    return {"token": token.text, "logprob": least(token.logprob), "bytes": list(token.content)}


def least(logprob: float) -> float:
    """The log-probability as JSON can hold it."""
    return max(logprob, LEAST_LOGPROB)
