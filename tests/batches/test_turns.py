"""Who is next: owners take turns, and nobody's batches keep another owner's waiting."""

import asyncio
from collections import Counter

from server.batches.turns import ALL_BATCHES, OWNERS_BATCHES, TURN_S, Turns, Work
from server.store.batches import Waiting


class Server:
    """Turns on a clock of their own; its batches never end by themselves."""

    def __init__(self) -> None:
        self.time = 0.0
        self.turns = Turns(lambda: self.time)
        self._numbers = 0

    def begin(self, owner: str, *, judging: bool = True) -> asyncio.Task[None]:
        self._numbers += 1
        name = f"{owner}{self._numbers}"
        task = asyncio.create_task(self._hold(name))
        self.turns.begin(name, Work(owner, task, since=self.time, judging=judging))
        return task

    async def _hold(self, name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            del self.turns.at_work[name]

    @property
    def owners(self) -> Counter[str]:
        return Counter(work.owner for work in self.turns.at_work.values())


def waiting(*owners: str) -> list[Waiting]:
    return [Waiting(f"batch_{owner}", owner) for owner in owners]


async def test_an_owner_has_only_so_many_at_once() -> None:
    server = Server()
    for _ in range(OWNERS_BATCHES):
        assert server.turns.next(waiting("anna")) is not None
        server.begin("anna")
    assert server.turns.next(waiting("anna")) is None
    assert server.turns.next(waiting("anna", "bert")) == Waiting("batch_bert", "bert")


async def test_the_one_with_the_least_is_next_and_then_the_one_whose_turn_is_longest_ago() -> None:
    server = Server()
    for owner in ("anna", "bert", "anna", "carl"):
        server.begin(owner)
    assert server.turns.next(waiting("anna", "carl", "bert")) == Waiting("batch_bert", "bert")
    assert server.turns.next(waiting("anna", "carl", "bert", "dora")) == Waiting("batch_dora", "dora")


async def test_who_has_more_than_others_gives_way_at_once() -> None:
    server = Server()
    for owner in "a" * OWNERS_BATCHES + "b" * (ALL_BATCHES - OWNERS_BATCHES):
        server.begin(owner)
    assert server.turns.full
    (carl,) = waiting("carl")
    await asyncio.sleep(0)
    server.turns.give_way(carl)
    server.turns.give_way(carl)  # one is enough
    await asyncio.sleep(0.01)
    assert server.turns.next([carl]) == carl
    assert sum(server.owners.values()) == ALL_BATCHES - 1


async def test_who_has_one_gives_way_after_a_turn() -> None:
    server = Server()
    tasks = [server.begin(f"owner {number}") for number in range(ALL_BATCHES)]
    (late,) = waiting("late")
    await asyncio.sleep(0)
    server.turns.give_way(late)
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in tasks)
    server.time += TURN_S
    server.turns.give_way(late)
    await asyncio.sleep(0.01)
    assert [task.done() for task in tasks].count(True) == 1
    # The one that gave way has to wait for its next turn.
    gone = next(f"owner {number}" for number, task in enumerate(tasks) if task.done())
    assert server.turns.next(waiting(gone, "late")) == late


async def test_what_would_be_lost_does_not_give_way() -> None:
    """A check of a file, or an end, would begin anew each time."""
    server = Server()
    tasks = [server.begin("anna", judging=False) for _ in range(ALL_BATCHES)]
    server.time += 10 * TURN_S
    await asyncio.sleep(0)
    server.turns.give_way(waiting("bert")[0])
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in tasks)
