"""What one caller holds never shuts out another."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.http.budget import BodyBudget, FairShare
from server.domain.errors import Overloaded


def test_one_holder_gets_half_two_get_a_third_each_and_something_is_always_left() -> None:
    share = FairShare(120)
    for holder, expected in (("a", 60), ("b", 30), ("c", 15)):
        taken = 0
        while share.take(holder, 1):
            taken += 1
        assert taken == expected
    assert share.free == 15


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-50, 100)), max_size=60))
def test_nothing_is_lost_and_no_holder_has_more_than_is_left(steps: list[tuple[str, int]]) -> None:
    share, held = FairShare(1000), {"a": 0, "b": 0, "c": 0}
    for holder, amount in steps:
        if amount >= 0:
            free = share.free
            if share.take(holder, amount):
                held[holder] += amount
                assert held[holder] <= share.free
            else:
                assert share.free == free
        elif held[holder] >= -amount:
            share.give_back(holder, -amount)
            held[holder] += amount
        assert share.free == 1000 - sum(held.values())


def test_small_bodies_are_always_taken_and_large_ones_counted_from_there_on() -> None:
    budget = BodyBudget(4 * BodyBudget.SMALL)
    counted = budget.take("a", 0, 3 * BodyBudget.SMALL)
    assert counted == 2 * BodyBudget.SMALL
    with pytest.raises(Overloaded):
        budget.take("a", BodyBudget.SMALL, 1)
    for holder in ("a", "b"):
        for _ in range(1000):
            assert budget.take(holder, 0, BodyBudget.SMALL) == 0
    budget.give_back("a", counted)
    assert budget.free == 4 * BodyBudget.SMALL


def test_one_connection_of_an_address_leaves_room_for_its_others() -> None:
    """Without keys an address may be that of many callers."""
    size = 64 * 2**20
    budget = BodyBudget(4 * size)
    for connection in "1234":
        held = 0
        while held < size:
            try:
                budget.take("address", held, 65_536, connection)
            except Overloaded:
                break
            held += 65_536
        assert held == size or connection != "1", "one body of the largest size fits"
    assert budget.take("address", 0, 2**20, "5"), "a picture of another connection"
    assert budget.take("another address", 0, size // 2, "1")


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["1", "2", None]), st.integers(0, 100)), max_size=60))
def test_what_parts_take_is_given_back(steps: list[tuple[str, str | None, int]]) -> None:
    share = FairShare(1000)
    taken = [step for step in steps if share.take(step[0], step[2], step[1])]
    assert share.free == 1000 - sum(amount for _, _, amount in taken)
    for holder, part, amount in taken:
        share.give_back(holder, amount, part)
    assert share.free == 1000
    assert share.take("a", 500, "1") is False
    assert share.take("a", 333, "1"), "nothing is left of what was held"
