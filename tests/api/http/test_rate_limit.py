"""Limits by key: exact to one percent under any order of requests, debits and waits, and Retry-After is true."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.api.http.rate_limit import Allowance, RateLimits, Unit
from server.domain.caller import ANYONE, Caller, Scope
from server.domain.errors import Overloaded, RequestLimitReached, TokenLimitReached


class Clock:
    def __init__(self, now: float = 1e6) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def caller(id_: str = "key_a", requests: int | None = None, tokens: int | None = None) -> Caller:
    return Caller(id_, frozenset({Scope.MODERATE}), requests_per_minute=requests, tokens_per_minute=tokens)


def allowance_of(limits: RateLimits, who: Caller, unit: Unit) -> Allowance:
    """What is left of a limit that the caller has."""
    allowance = limits.allowance(who, unit)
    assert allowance is not None
    return allowance


def taken(limits: RateLimits, who: Caller, tries: int) -> int:
    count = 0
    for _ in range(tries):
        try:
            limits.take_request(who)
            count += 1
        except Overloaded:
            pass
    return count


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limits(clock: Clock) -> RateLimits:
    return RateLimits(clock)


# --- Requests ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 60, 1000])
def test_a_full_bucket_holds_exactly_the_limit(limits: RateLimits, limit: int) -> None:
    assert taken(limits, caller(requests=limit), limit + 5) == limit


def test_what_is_refused_says_so_in_requests_or_in_tokens(limits: RateLimits) -> None:
    who = caller(requests=1, tokens=10)
    limits.take_request(who)
    with pytest.raises(RequestLimitReached) as caught:
        limits.take_request(who)
    assert (caught.value.status, caught.value.type, caught.value.code) == (429, "requests", "rate_limit_exceeded")
    assert caught.value.retry_after == 60
    other = caller("key_b", tokens=10)
    limits.debit_tokens(other, 10)
    with pytest.raises(TokenLimitReached) as short_of_tokens:
        limits.take_request(other)
    refused = short_of_tokens.value
    assert (refused.status, refused.type, refused.code) == (429, "tokens", "rate_limit_exceeded")
    assert refused.retry_after == 6


@pytest.mark.parametrize("limit", [1, 3, 59, 60, 61, 1000])
def test_a_minute_later_all_of_it_is_back_and_no_more(limits: RateLimits, clock: Clock, limit: int) -> None:
    who = caller(requests=limit)
    taken(limits, who, limit)
    clock.now += 60
    assert taken(limits, who, 2 * limit) == limit
    clock.now += 100_000
    assert taken(limits, who, 2 * limit) == limit


@pytest.mark.parametrize("limit", [6, 60, 600])
def test_who_never_stops_asking_gets_the_limit_to_one_percent(limits: RateLimits, clock: Clock, limit: int) -> None:
    who = caller(requests=limit)
    taken(limits, who, limit)
    count, minutes, step = 0, 30, 0.037
    start = clock.now
    while clock.now < start + 60 * minutes:
        clock.now += step
        count += taken(limits, who, 1)
    assert abs(count - limit * minutes) <= 0.01 * limit * minutes


def test_who_keeps_to_the_limit_is_never_refused(limits: RateLimits, clock: Clock) -> None:
    who = caller(requests=7)
    for _ in range(5000):
        limits.take_request(who)
        clock.now += 60 / 7


def test_keys_do_not_share(limits: RateLimits) -> None:
    assert taken(limits, caller("key_a", requests=3), 5) == 3
    assert taken(limits, caller("key_b", requests=3), 5) == 3


def test_who_has_no_limit_is_never_refused_and_leaves_nothing(limits: RateLimits) -> None:
    for who in (ANYONE, caller()):
        assert taken(limits, who, 10_000) == 10_000
        limits.debit_tokens(who, 10**9)
        assert taken(limits, who, 1) == 1
        assert [limits.allowance(who, unit) for unit in Unit] == [None, None]
    assert limits._balances == {}


def test_a_refused_request_costs_nothing(limits: RateLimits, clock: Clock) -> None:
    who = caller(requests=60, tokens=60)
    limits.debit_tokens(who, 60)
    assert taken(limits, who, 1000) == 0
    assert allowance_of(limits, who, Unit.REQUESTS).remaining == 60
    clock.now += 1
    assert taken(limits, who, 1) == 1
    taken(limits, who, 59)
    assert taken(limits, who, 1000) == 0
    clock.now += 1
    assert taken(limits, who, 1000) == 1


# --- Tokens -----------------------------------------------------------------------------------------------


def test_a_debt_is_paid_back_before_anything_is_served(limits: RateLimits, clock: Clock) -> None:
    who = caller(tokens=1000)
    limits.take_request(who)
    limits.debit_tokens(who, 5000)
    assert allowance_of(limits, who, Unit.TOKENS).remaining == 0
    with pytest.raises(TokenLimitReached) as caught:
        limits.take_request(who)
    assert caught.value.retry_after == 241  # 4,000 tokens of debt, and one more
    clock.now += 240
    assert taken(limits, who, 1) == 0
    clock.now += 1
    assert taken(limits, who, 1) == 1


def test_large_requests_get_no_more_than_the_limit_in_the_long_run(limits: RateLimits, clock: Clock) -> None:
    who = caller(tokens=1000)
    start, spent = clock.now, 0
    while clock.now < start + 6000:
        if taken(limits, who, 1):
            limits.debit_tokens(who, 700_000 if spent == 0 else 1700)
            spent += 700_000 if spent == 0 else 1700
        clock.now += 1
    assert spent == 700_000, "the debt of the first one outlasts an hour and forty minutes"


@pytest.mark.parametrize("limit", [100, 10_000, 2**31 - 1])
def test_spent_tokens_follow_the_limit_to_one_percent(limits: RateLimits, clock: Clock, limit: int) -> None:
    who = caller(tokens=limit)
    each, spent, start, minutes = max(1, limit // 50), 0, clock.now, 60
    limits.debit_tokens(who, limit)
    while clock.now < start + 60 * minutes:
        clock.now += 0.5
        if taken(limits, who, 1):
            limits.debit_tokens(who, each)
            spent += each
    assert abs(spent - limit * minutes) <= 0.01 * limit * minutes


# --- Any order of things ------------------------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """Beside the real thing, the same limits in exact fractions, written another way: balances that are refilled."""

    @initialize(
        requests=st.none() | st.integers(1, 10_000),
        tokens=st.none() | st.integers(1, 2**31 - 1),
        started=st.floats(0, 1e7),
    )
    def begin(self, requests: int | None, tokens: int | None, started: float) -> None:
        self.clock = Clock(started)
        self.limits = RateLimits(self.clock)
        self.caller = caller(requests=requests, tokens=tokens)
        self.limit = {Unit.REQUESTS: requests, Unit.TOKENS: tokens}
        self.balance = {unit: Fraction(limit or 0) for unit, limit in self.limit.items()}

    @rule(seconds=st.floats(0, 0.01) | st.floats(0, 10) | st.floats(0, 10_000))
    def wait(self, seconds: float) -> None:
        before = Fraction(self.clock.now)
        self.clock.now += seconds
        self.refill(Fraction(self.clock.now) - before)

    def refill(self, seconds: Fraction) -> None:
        for unit, limit in self.limit.items():
            if limit is not None:
                self.balance[unit] = min(Fraction(limit), self.balance[unit] + seconds * limit / 60)

    @rule(times=st.integers(1, 50))
    def ask(self, times: int) -> None:
        for _ in range(times):
            left = [self.balance[unit] - 1 for unit, limit in self.limit.items() if limit is not None]
            refusal = self.refusal()
            if refusal is None:
                assert all(more >= -0.01 for more in left), "let in beyond the limit"
                self.balance[Unit.REQUESTS] -= 1
                continue
            assert any(more < 0.01 for more in left), "refused below the limit"
            short = Unit(refusal.type)
            limit = self.limit[short]
            assert limit is not None, "refused by a limit that is not there"
            assert refusal.retry_after is not None
            wait = (1 - self.balance[short]) * 60 / limit
            assert wait - Fraction(1, 100) <= refusal.retry_after <= max(Fraction(1), wait + Fraction(101, 100))

    def refusal(self) -> Overloaded | None:
        try:
            self.limits.take_request(self.caller)
        except Overloaded as refusal:
            return refusal
        return None

    @precondition(lambda self: self.limit[Unit.TOKENS] is not None)
    @rule(share=st.floats(0, 3))
    def spend(self, share: float) -> None:
        limit = self.limit[Unit.TOKENS]
        assert limit is not None
        tokens = int(limit * share)
        self.limits.debit_tokens(self.caller, tokens)
        self.balance[Unit.TOKENS] -= tokens

    @rule()
    def come_back_when_told(self) -> None:
        told = []
        while (refusal := self.refusal()) is not None:
            told.append(refusal.type)
            assert refusal.retry_after is not None
            self.wait(float(refusal.retry_after))
        # Both limits may be reached: the second is told of once the first has passed.
        assert len(told) == len(set(told)), "a wait that was told must be enough"
        self.balance[Unit.REQUESTS] -= 1

    @invariant()
    def what_is_told_is_so(self) -> None:
        for unit, limit in self.limit.items():
            allowance = self.limits.allowance(self.caller, unit)
            if limit is None:
                assert allowance is None
                continue
            assert allowance is not None
            assert allowance.limit == limit
            balance = max(Fraction(0), self.balance[unit])
            assert abs(allowance.remaining - balance) <= 1 + Fraction(limit, 100)
            assert 0 <= allowance.remaining <= limit
            until_full = (limit - self.balance[unit]) * 60 / limit
            assert abs(Fraction(allowance.reset_s) - until_full) <= Fraction(1, 100)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@settings(max_examples=200, deadline=None)
@given(limit=st.integers(1, 10_000), started=st.floats(0, 1e8), pauses=st.lists(st.floats(0, 5), max_size=60))
def test_over_any_stretch_of_time_no_more_than_the_limit_and_one_bucket(
    limit: int, started: float, pauses: list[float]
) -> None:
    clock = Clock(started)
    limits, who, count = RateLimits(clock), caller(requests=limit), 0
    for pause in pauses:
        clock.now += pause
        count += taken(limits, who, min(limit, 30))
    assert count <= limit + limit * (clock.now - started) / 60 + 0.01
