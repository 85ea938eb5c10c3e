"""The interface between the moderator and a backend: one case in, one completion out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from PIL.Image import Image

from server.domain.caller import ORDINARY, Handling
from server.domain.conversation import Conversation
from server.domain.policy import Policy
from server.domain.verdict import Completion


@dataclass(frozen=True, slots=True)
class Case:
    """A conversation to judge, and the policy for it.

    `images` are decoded RGB pictures, one for each image part of the conversation, in the order of
    `conversation.images`. After `deadline`, in time.monotonic(), nobody waits for the answer any more.
    """

    conversation: Conversation
    images: Sequence[Image]
    policy: Policy
    handling: Handling = ORDINARY
    deadline: float = field(default=math.inf, compare=False)


class Backend(Protocol):
    """Something that answers cases.

    A backend reports the model's answer and its probabilities. Only `server.domain.verdict.judge` decides whether that
    is a verdict. To cancel `complete` aborts its work.
    """

    name: str

    async def start(self) -> None:
        """Get ready to answer, including the warm-up. Raises an error if serving is impossible."""

    async def complete(self, case: Case) -> Completion:
        """Judge one case.

        Raises ContextLengthExceeded, EngineUnavailable if the backend is dead, and EngineFailure if only this request
        failed. A remote backend also raises RemoteRefused, RemoteRejected, RemoteFailure and Overloaded.
        """

    async def probe(self, case: Case) -> Completion | None:
        """Show that verdicts come through: judge a harmless case that the server made.

        Must cost nothing and send no content of callers. A paid backend finds out in another way and returns None.
        Raises like `complete`.
        """

    @property
    def alive(self) -> bool:
        """False if only a restart can help."""

    @property
    def heard_at(self) -> float:
        """time.monotonic() of the last step of an engine on this machine, minus infinity without one."""

    async def close(self) -> None:
        """Free everything. No `complete` may be running."""
