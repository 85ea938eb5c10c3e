"""The seam between the moderator and whatever judges: one case in, one completion out."""

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
    """What is to be judged, and by which policy.

    `images` are decoded RGB pictures, one for each image part of the conversation, in the order of
    `conversation.images`. After `deadline`, by time.monotonic(), nobody waits for the answer any more.
    """

    conversation: Conversation
    images: Sequence[Image]
    policy: Policy
    handling: Handling = ORDINARY
    deadline: float = field(default=math.inf, compare=False)


class Backend(Protocol):
    """Something that answers cases.

    A backend reports what the model said and how probable it was; whether that is a verdict is decided in one place,
    `server.domain.verdict.judge`. Cancelling `complete` aborts the work behind it.
    """

    name: str

    async def start(self) -> None:
        """Become able to answer, warm-up included. Raises what makes serving impossible."""

    async def complete(self, case: Case) -> Completion:
        """Judge one case.

        Raises ContextLengthExceeded, EngineUnavailable when the backend is dead, EngineFailure when this one
        request failed, and of a remote backend RemoteRefused, RemoteRejected, RemoteFailure and Overloaded.
        """

    async def probe(self, case: Case) -> Completion | None:
        """Show that verdicts come through: judge a harmless case of the server's own.

        Must cost nothing and send nothing of anybody's. A backend that has to be paid returns None once it has found
        out otherwise. Raises like `complete`.
        """

    @property
    def alive(self) -> bool:
        """False once only a restart can help."""

    async def close(self) -> None:
        """Free everything. No `complete` may be running."""
