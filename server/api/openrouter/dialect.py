"""OpenRouter's dialect, as the application includes it."""

from server.api.http.dialect import Dialect
from server.api.openrouter import account, chat, errors, generations, models
from server.domain.caller import Scope

PREFIX = "/api/v1"

DIALECT = Dialect(
    [chat.router, models.router, generations.router, account.router],
    scopes={PREFIX: Scope.MODERATE},
    errors={PREFIX: errors.SHAPE},
)
