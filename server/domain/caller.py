"""The caller, and how a request is handled: everything about it except its question."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum


class Scope(StrEnum):
    """The right of a key: to ask for verdicts, to keep files and run batches, to see the state of the server."""

    MODERATE = "moderate"
    BATCH = "batch"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Caller:
    """The holder of one API key. `id` is None on a server without keys.

    `never_remote` keeps all of this caller's requests on this machine. `finished_prompts` is the right to send Guard
    prompts that choose their own categories and the message to judge. Limits are per minute, None without one.
    """

    id: str | None
    scopes: frozenset[Scope]
    never_remote: bool = False
    finished_prompts: bool = False
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    @property
    def owner(self) -> str:
        """The owner of the caller's files and batches in the database."""
        return self.id or ""


ANYONE = Caller(None, frozenset(Scope))
"""Every caller of a server without keys."""


class Meter:
    """Counts the tokens that one request spent, whether or not it is answered in the end."""

    def __init__(self, debit: Callable[[int], None]) -> None:
        """`debit` is told of tokens at once, so that other requests of the caller see them."""
        self._debit = debit
        self.tokens = 0

    def spend(self, tokens: int) -> None:
        """Count `tokens`. A negative number takes back what was counted too much."""
        if tokens:
            self.tokens += tokens
            self._debit(tokens)


@dataclass(frozen=True, slots=True)
class Handling:
    """How a request is handled, apart from its messages and its policy.

    `tenant` is the caller whose verdicts and prefix cache are kept apart from those of others. `never_remote` keeps the
    request on this machine. `top_logprobs` is the number of alternatives to report for each token of the answer. None:
    not even the tokens' own probabilities are reported.

    The other fields change no answer. `background` work waits until live requests leave room, `finished_prompts` is the
    caller's right to send them. `request_id` names the HTTP request in events, `endpoint` is its route, and `trace_id`
    the caller's trace. A `large` request is read beside the event loop (server.domain.aio.done). `meter` counts its
    tokens as they are spent.
    """

    tenant: str | None = None
    never_remote: bool = False
    finished_prompts: bool = False
    background: bool = False
    top_logprobs: int | None = None
    request_id: str | None = field(default=None, compare=False)
    large: bool = field(default=False, compare=False)
    meter: Meter | None = field(default=None, compare=False)
    endpoint: str | None = field(default=None, compare=False)
    trace_id: str | None = field(default=None, compare=False)

    @property
    def distinct(self) -> tuple[object, ...]:
        """The fields on which an answer may depend. They are a part of a question's key."""
        return self.tenant, self.never_remote, self.top_logprobs


ORDINARY = Handling()
"""A live request without special handling."""
