"""What supervisors and load balancers get."""

from typing import Literal

from server.api.replies.base import ABSENT, ReplyModel


class Health(ReplyModel):
    status: Literal["alive", "dead"]


class Ready(ReplyModel):
    status: Literal["ready", "not ready"]
    reason: str = ABSENT
    model: str
    stand_in: bool
