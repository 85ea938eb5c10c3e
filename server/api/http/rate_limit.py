"""The limits of each key: requests and tokens per minute, counted in this process.

A limit of N per minute is a bucket that holds N and refills continuously at N per minute. A request is debited before
its work. Tokens are debited while they are spent, whatever becomes of the request: an estimate when a prompt is begun,
and the difference once its tokens are known. This may leave a debt, and the key is refused until it is paid off. In the
long run a key gets exactly its limit, however large its requests are.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from server.domain.caller import Caller
from server.domain.errors import GuardError, RequestLimitReached, TokenLimitReached

MINUTE_S = 60.0
ROUNDING = 1e-6
"""How far floating-point arithmetic may move a balance."""


class Unit(StrEnum):
    """What is counted."""

    REQUESTS = "requests"
    TOKENS = "tokens"


REACHED: dict[Unit, type[GuardError]] = {Unit.REQUESTS: RequestLimitReached, Unit.TOKENS: TokenLimitReached}


@dataclass(frozen=True, slots=True)
class Allowance:
    """How much of one limit is left, and the seconds until the bucket is full again."""

    limit: int
    remaining: int
    reset_s: float


class RateLimits:
    """The buckets of all keys. A caller without limits needs no bucket and is never refused."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._balances: dict[tuple[str, Unit], tuple[float, float]] = {}
        """The balance of each bucket, and the time of it. A bucket that is not here is full."""

    def take_request(self, caller: Caller) -> None:
        """Count one request of `caller`. Raises RequestLimitReached or TokenLimitReached, and then counts nothing."""
        if caller.requests_per_minute is None and caller.tokens_per_minute is None:
            return
        now = self._clock()
        for unit in Unit:
            limit = _limit(caller, unit)
            if limit is not None and (missing := 1 - self._balance(caller, unit, limit, now)) > ROUNDING:
                raise REACHED[unit](
                    f"This key has reached its limit of {limit} {unit} per minute. Try again after Retry-After.",
                    # Whole seconds, rounded up: a retry at the given time must not be too early.
                    retry_after=math.ceil(missing * MINUTE_S / limit),
                )
        self._debit(caller, Unit.REQUESTS, 1)

    def debit_tokens(self, caller: Caller, tokens: int) -> None:
        """Count tokens of a request of `caller`."""
        self._debit(caller, Unit.TOKENS, tokens)

    def allowance(self, caller: Caller, unit: Unit) -> Allowance | None:
        """None if `caller` has no such limit."""
        limit = _limit(caller, unit)
        if limit is None:
            return None
        balance = self._balance(caller, unit, limit, self._clock())
        return Allowance(limit, max(0, math.floor(balance + ROUNDING)), (limit - balance) * MINUTE_S / limit)

    def _debit(self, caller: Caller, unit: Unit, amount: int) -> None:
        limit = _limit(caller, unit)
        if limit is not None:
            now = self._clock()
            self._balances[caller.owner, unit] = (self._balance(caller, unit, limit, now) - amount, now)

    def _balance(self, caller: Caller, unit: Unit, limit: int, now: float) -> float:
        """The balance at `now`. It is negative while there is a debt."""
        left, since = self._balances.get((caller.owner, unit), (float(limit), 0.0))
        return min(float(limit), left + (now - since) * limit / MINUTE_S)


def _limit(caller: Caller, unit: Unit) -> int | None:
    return caller.requests_per_minute if unit is Unit.REQUESTS else caller.tokens_per_minute
