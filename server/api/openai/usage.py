"""Token counts in the format of OpenAI's newer endpoints."""

from typing import Literal

from server.api.http.shapes import Closed


class OutputTokensDetails(Closed):
    reasoning_tokens: Literal[0]
