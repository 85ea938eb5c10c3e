"""Places for lines: bounded, never lost, and shared by owners whatever each of them has waiting."""

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.batches.places import BYTES_A_PLACE, Places


async def take(places: Places, owner: str, size: int, order: list[str]) -> int:
    taken = await places.take(owner, size)
    order.append(owner)
    return taken


async def test_owners_take_turns_however_many_lines_each_has() -> None:
    places, order = Places(2), list[str]()
    held = [await places.take("anna", 0) for _ in range(2)]
    waiting = [asyncio.create_task(take(places, "anna", 0, order)) for _ in range(50)]
    await asyncio.sleep(0)
    waiting += [asyncio.create_task(take(places, owner, 0, order)) for owner in ("bert", "bert", "carl")]
    await asyncio.sleep(0)
    for _ in range(8):
        places.give_back(held[0])
        await asyncio.sleep(0)
    assert Counter(order[:5]) == {"anna": 2, "bert": 2, "carl": 1}
    assert order[5:] == ["anna"] * 3
    for task in waiting:
        task.cancel()


async def test_a_long_line_takes_more_and_is_not_passed_by_for_ever() -> None:
    places, order = Places(4), list[str]()
    held = [await places.take("anna", 0) for _ in range(4)]
    long = asyncio.create_task(take(places, "bert", 100 * BYTES_A_PLACE, order))
    await asyncio.sleep(0)
    short = asyncio.create_task(take(places, "anna", 0, order))
    for each in held:
        await asyncio.sleep(0)
        assert order == []
        places.give_back(each)
    assert await long == 4
    places.give_back(4)
    assert await short == 1
    assert order == ["bert", "anna"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 6), st.booleans()), max_size=40))
def test_places_are_never_lost(lines: list[tuple[str, int, bool]]) -> None:
    async def work() -> None:
        places, in_use, most = Places(4), 0, 0

        async def one(owner: str, size: int) -> None:
            nonlocal in_use, most
            taken = await places.take(owner, size * BYTES_A_PLACE)
            in_use += taken
            most = max(most, in_use)
            await asyncio.sleep(0)
            in_use -= taken
            places.give_back(taken)

        tasks = []
        for owner, size, leaves in lines:
            tasks.append(asyncio.create_task(one(owner, size)))
            await asyncio.sleep(0)
            if leaves:
                await asyncio.sleep(0)
                # One that still waits, or has just been served.
                if in_use == 0 or not tasks[-1].done():
                    waiting = asyncio.create_task(places.take(owner, size * BYTES_A_PLACE))
                    await asyncio.sleep(0)
                    if waiting.done():
                        places.give_back(waiting.result())
                    waiting.cancel()
        await asyncio.gather(*tasks)
        assert most <= 4
        async with asyncio.timeout(5):
            assert await places.take("last", 100 * BYTES_A_PLACE) == 4

    asyncio.run(work())


async def test_who_is_cancelled_at_the_moment_of_its_turn_gives_it_back() -> None:
    places = Places(1)
    await places.take("anna", 0)
    waiting = asyncio.create_task(places.take("bert", 0))
    await asyncio.sleep(0)
    places.give_back(1)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    async with asyncio.timeout(5):
        assert await places.take("carl", 0) == 1
