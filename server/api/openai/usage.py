"""Tokens as the newer of OpenAI's endpoints count them."""

from typing import Literal

from server.api.http.shapes import Closed


class OutputTokensDetails(Closed):
    reasoning_tokens: Literal[0]
