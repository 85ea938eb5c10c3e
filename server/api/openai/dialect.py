"""OpenAI's dialect, as the application includes it."""

from server.api.http.dialect import Dialect
from server.api.openai import batches, chat, completions, files, models, responses
from server.domain.caller import Scope

DIALECT = Dialect(
    [chat.router, completions.router, responses.router, models.router, files.router, batches.router],
    scopes={
        "/v1/chat": Scope.MODERATE,
        "/v1/completions": Scope.MODERATE,
        "/v1/responses": Scope.MODERATE,
        "/v1/models": Scope.MODERATE,
        "/v1/files": Scope.BATCH,
        "/v1/batches": Scope.BATCH,
    },
)
