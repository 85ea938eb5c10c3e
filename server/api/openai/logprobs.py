"""Tokens and their log-probabilities, as OpenAI's endpoints write them."""

from typing import Any

from server.domain.verdict import Token

LEAST_LOGPROB = -9999.0
"""OpenAI's number for what has practically no probability; JSON has none for minus infinity."""


def entry(token: Token) -> dict[str, Any]:
    return {**_bare(token), "top_logprobs": [_bare(alternative) for alternative in token.alternatives]}


def _bare(token: Token) -> dict[str, Any]:
    return {"token": token.text, "logprob": max(token.logprob, LEAST_LOGPROB), "bytes": list(token.content)}
