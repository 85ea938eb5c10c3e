"""What is kept, for how long, and how much of it."""

import gc
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest

from server.backends.base import Case
from server.checkpoints.profile import load_profile
from server.domain.caller import Handling
from server.domain.conversation import Conversation, TextPart
from server.domain.policy import Policy
from server.domain.verdict import CacheUse, Completion, Verdict, judge
from server.moderation.question import AskedOnce
from server.moderation.verdict_cache import ENTRY_BYTES, VerdictCache
from tests.fakes import by_word, completion
from tests.readings import FAMILY

TAXONOMY = load_profile("llama-guard-4-12b").taxonomy
POLICY = Policy(TAXONOMY, own_codes=FAMILY.own_codes)
ALL_CODES = "unsafe\n" + ",".join(TAXONOMY.codes)


def verdict_on(text: str, policy: Policy = POLICY) -> Verdict:
    answer = by_word(Case(Conversation.from_user(TextPart(text)), (), policy))
    assert isinstance(answer, Completion)
    return judge(answer, policy)


def longest_verdict(policy: Policy, top_logprobs: int | None) -> Verdict:
    case = Case(Conversation.from_user(TextPart("a bomb " * 1000)), (), policy, Handling(top_logprobs=top_logprobs))
    return judge(completion(case, ALL_CODES), policy)


def own_policy(characters: int, unique: str = "") -> Policy:
    """One of 14 categories of a caller's own, each of so many characters."""
    return POLICY.narrowed(categories={f"S{code}": unique.ljust(characters, "\U0001f35e") for code in range(1, 15)})


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_kept_verdict_comes_back_as_a_hit_that_took_nothing() -> None:
    cache, verdict = VerdictCache(1, 60.0), verdict_on("a bomb")
    paid = replace(verdict, completion=replace(verdict.completion, provider="somebody", cost=0.5))
    cache.keep(b"x", paid)
    hit = cache.get(b"x")
    assert hit is not None
    assert hit.cache is CacheUse.HIT
    assert (hit.completion.cost, hit.completion.queued_s, hit.completion.computed_s) == (0.0, 0.0, 0.0)
    assert hit.completion.cached_tokens == hit.completion.prompt_tokens == paid.completion.prompt_tokens > 0
    same: dict[str, Any] = {"cost": 0.5, "queued_s": 0.001, "computed_s": 0.002, "cached_tokens": 128}
    assert replace(hit, cache=None, completion=replace(hit.completion, **same)) == paid


def test_what_cost_nothing_by_nature_has_no_cost() -> None:
    assert verdict_on("bread").uncomputed(CacheUse.HIT).completion.cost is None


def test_other_questions_find_nothing() -> None:
    cache = VerdictCache(10, 60.0)
    cache.keep(b"x", verdict_on("bread"))
    assert cache.get(b"y") is None


def test_what_is_asked_once_is_not_kept() -> None:
    cache, key = VerdictCache(1, 60.0), AskedOnce()
    cache.keep(b"x", verdict_on("bread"))
    cache.keep(key, verdict_on("bread"))
    assert cache.get(key) is None
    assert cache.get(b"x") is not None


def test_nothing_is_kept_unless_asked_for() -> None:
    cache = VerdictCache(0, 60.0)
    cache.keep(b"x", verdict_on("bread"))
    assert cache.get(b"x") is None


def test_the_one_not_asked_for_longest_makes_room() -> None:
    cache = VerdictCache(2, 60.0)
    for key in (b"x", b"y"):
        cache.keep(key, verdict_on("bread"))
    cache.get(b"x")
    cache.keep(b"z", verdict_on("bread"))
    assert [key for key in (b"x", b"y", b"z") if cache.get(key)] == [b"x", b"z"]


def test_time_is_counted_from_the_verdict_and_not_from_its_last_use() -> None:
    clock = Clock()
    cache = VerdictCache(2, 60.0, clock)
    cache.keep(b"x", verdict_on("bread"))
    clock.now = 59.0
    assert cache.get(b"x") is not None
    clock.now = 60.0
    assert cache.get(b"x") is None


@pytest.mark.parametrize(("policy", "top_logprobs"), [(own_policy(4000), None), (POLICY, 20), (own_policy(4000), 20)])
def test_what_is_large_counts_as_several(policy: Policy, top_logprobs: int | None) -> None:
    cache = VerdictCache(100, 60.0)
    for number in range(100):
        cache.keep(b"%d" % number, longest_verdict(policy, top_logprobs))
    assert 1 <= sum(cache.get(b"%d" % number) is not None for number in range(100)) < 60


def test_what_is_larger_than_all_room_is_not_kept_and_drives_nobody_out() -> None:
    cache = VerdictCache(2, 60.0)
    cache.keep(b"x", verdict_on("bread"))
    cache.keep(b"y", verdict_on("bread", own_policy(4000)))
    assert cache.get(b"x") is not None
    assert cache.get(b"y") is None


@pytest.mark.parametrize("characters", [0, 20, 4000])
@pytest.mark.parametrize("top_logprobs", [None, 20])
def test_a_full_cache_takes_no_more_memory_than_it_says(characters: int, top_logprobs: int | None) -> None:
    """Whatever fills it: the operator's policy or one that each request brings, answers with tokens or without."""
    entries = 100
    cache = VerdictCache(entries, 60.0)
    tracemalloc.start()
    for number in range(entries):
        policy = own_policy(characters, unique=str(number)) if characters else POLICY
        cache.keep(number.to_bytes(32, "big"), longest_verdict(policy, top_logprobs))
        del policy
    gc.collect()  # Python keeps the memory of small objects for the next ones
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert cache.get((entries - 1).to_bytes(32, "big")) is not None
    assert size <= entries * ENTRY_BYTES
