"""Who asks, and how the answer is worked on: what a request brings beside its question."""

from dataclasses import dataclass, field
from enum import StrEnum


class Scope(StrEnum):
    """What a key may do: ask for verdicts, keep files and run batches, see how the server does."""

    MODERATE = "moderate"
    BATCH = "batch"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever holds one API key. `id` is None while nobody is asked for a key.

    `never_remote` keeps all that this caller sends on this machine. `finished_prompts` is the right to send Guard
    prompts that choose their categories and what is judged. Limits are per minute, None without one.
    """

    id: str | None
    scopes: frozenset[Scope]
    never_remote: bool = False
    finished_prompts: bool = False
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None

    @property
    def owner(self) -> str:
        """Whose files and batches these are, in the database."""
        return self.id or ""


ANYONE = Caller(None, frozenset(Scope))
"""Every caller of a server that asks nobody for a key."""


@dataclass(frozen=True, slots=True)
class Handling:
    """What a request says beside its messages and its policy.

    `tenant` is the caller whose verdicts and prefix cache are kept apart from those of others. `never_remote` keeps the
    request on this machine. `top_logprobs` alternatives are wanted for each token of the answer; None: not even the
    tokens' own probabilities are.

    The rest changes no answer: `background` work waits until live requests leave room, `finished_prompts` is the
    caller's right to send them. `request_id` names the HTTP request in events; two requests may ask for the same.
    """

    tenant: str | None = None
    never_remote: bool = False
    finished_prompts: bool = False
    background: bool = False
    top_logprobs: int | None = None
    request_id: str | None = field(default=None, compare=False)

    @property
    def distinct(self) -> tuple[object, ...]:
        """The part on which an answer may depend: equal questions are equal in this too."""
        return self.tenant, self.never_remote, self.top_logprobs


ORDINARY = Handling()
"""A live request that nothing special was said about."""
