"""How much a caller may still send, in the headers that OpenAI's clients read.

The headers give the key's own limits. A key without them gets the server's: the free places, and the most tokens that
could fill them.
"""

import math
from collections.abc import Sequence

from server.api.http.rate_limit import RateLimits, Unit
from server.domain.caller import Caller
from server.domain.verdict import Verdict
from server.moderation.admission import Admission

Headers = list[tuple[bytes, bytes]]


class Limits:
    """The limits of keys and of the whole server, as requests meet them."""

    def __init__(self, admission: Admission, context_tokens: int) -> None:
        """`context_tokens` is the longest prompt that one place of `admission` may hold."""
        self._admission = admission
        self._units = ((Unit.REQUESTS, 1), (Unit.TOKENS, context_tokens))
        self._by_key = RateLimits()

    def take_request(self, caller: Caller) -> None:
        """Count a request. Raises RequestLimitReached or TokenLimitReached."""
        self._by_key.take_request(caller)

    def debit(self, caller: Caller, tokens: int) -> None:
        """Count tokens that a request of `caller` spent. A negative number gives some back."""
        self._by_key.debit_tokens(caller, tokens)

    def debit_answer(self, caller: Caller, verdicts: Sequence[Verdict], spent: int) -> None:
        """Count the rest of the tokens of an answered request, including those from a cache.

        `spent` tokens were counted while it was judged.
        """
        completions = [verdict.completion for verdict in verdicts]
        tokens = sum(each.prompt_tokens + each.completion_tokens for each in completions)
        self.debit(caller, max(0, tokens - spent))

    def headers(self, caller: Caller) -> Headers:
        """`x-ratelimit-{limit,remaining,reset}-{requests,tokens}`."""
        admission = self._admission
        free, until = admission.free, duration(admission.reset_s)
        headers: Headers = []
        for unit, each in self._units:
            allowed, left, reset = admission.limit * each, free * each, until
            if (own := self._by_key.allowance(caller, unit)) is not None:
                allowed, left, reset = own.limit, own.remaining, duration(own.reset_s)
            headers += zip(_NAMES[unit], (b"%d" % allowed, b"%d" % left, reset.encode()), strict=True)
        return headers


_NAMES = {unit: [f"x-ratelimit-{what}-{unit}".encode() for what in ("limit", "remaining", "reset")] for unit in Unit}


def duration(seconds: float) -> str:
    """As OpenAI writes them: `0s`, `120ms`, `1.5s`, `6m0s`, `1h0m0s`. Rounded up to a whole millisecond."""
    milliseconds = math.ceil(round(seconds * 1000, 3))
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{milliseconds / 1000:g}s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text
