"""How much one key may ask for: requests and tokens a minute, counted in this process.

A limit of N a minute is a bucket that holds N and is refilled by N a minute, without steps. A request is paid before
its work. Tokens are known only after it: they are debited then, below nothing if need be, and the key is refused until
the debt has run out. So in the long run a key gets what its limit says, however large its requests are.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from server.caller import Caller
from server.errors import GuardError, RequestLimitReached, TokenLimitReached

MINUTE_S = 60.0
ROUNDING = 1e-6
"""How far floating point may carry a balance."""


class Unit(StrEnum):
    """What is counted."""

    REQUESTS = "requests"
    TOKENS = "tokens"


REACHED: dict[Unit, type[GuardError]] = {Unit.REQUESTS: RequestLimitReached, Unit.TOKENS: TokenLimitReached}


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much of one limit is left, and the seconds until all of it is back."""

    limit: int
    remaining: int
    reset_s: float


class RateLimits:
    """The buckets of all keys. Whoever has no limit costs nothing here and is never refused.

    Of a bucket only the time is kept at which it is full again: from that and the limit follows the balance.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._full_at: dict[tuple[str, Unit], float] = {}

    def take_request(self, caller: Caller) -> None:
        """Count one request of `caller`. Raises RequestLimitReached or TokenLimitReached, and then counts nothing."""
        for unit in Unit:
            limit = _limit(caller, unit)
            if limit is not None and (wait := self._seconds_until_one(caller, unit, limit)) > 0:
                raise REACHED[unit](
                    f"The key's limit of {limit} {unit} per minute is reached.",
                    # Whole seconds, so upwards: a try that comes when it was told to must not come too early.
                    retry_after=max(1, math.ceil(wait)),
                )
        self._debit(caller, Unit.REQUESTS, 1)

    def debit_tokens(self, caller: Caller, tokens: int) -> None:
        """Count what a request of `caller` turned out to cost."""
        self._debit(caller, Unit.TOKENS, tokens)

    def allowance(self, caller: Caller, unit: Unit) -> Allowance | None:
        """None without a limit."""
        limit = _limit(caller, unit)
        if limit is None:
            return None
        missing_s = self._missing_s(caller, unit)
        return Allowance(limit, max(0, math.floor(self._balance(limit, missing_s) + ROUNDING)), missing_s)

    def _debit(self, caller: Caller, unit: Unit, amount: int) -> None:
        limit = _limit(caller, unit)
        if limit is not None:
            full_at = self._clock() + self._missing_s(caller, unit) + amount * MINUTE_S / limit
            self._full_at[caller.owner, unit] = full_at

    def _missing_s(self, caller: Caller, unit: Unit) -> float:
        """Seconds until the bucket is full."""
        return max(0.0, self._full_at.get((caller.owner, unit), -math.inf) - self._clock())

    def _seconds_until_one(self, caller: Caller, unit: Unit, limit: int) -> float:
        missing = 1 - self._balance(limit, self._missing_s(caller, unit))
        return 0.0 if missing <= ROUNDING else missing * MINUTE_S / limit

    def _balance(self, limit: int, missing_s: float) -> float:
        return limit - missing_s * limit / MINUTE_S


def _limit(caller: Caller, unit: Unit) -> int | None:
    return caller.requests_per_minute if unit is Unit.REQUESTS else caller.tokens_per_minute
