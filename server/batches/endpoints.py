"""The endpoints of batches, by path."""

from typing import Any

from server.api import moderations
from server.api.endpoint import Endpoint
from server.api.openai import chat, completions, responses

ENDPOINTS: dict[str, Endpoint[Any, Any]] = {
    "/v1/moderations": moderations.ENDPOINT,
    "/v1/chat/completions": chat.ENDPOINT,
    "/v1/completions": completions.ENDPOINT,
    "/v1/responses": responses.ENDPOINT,
}
