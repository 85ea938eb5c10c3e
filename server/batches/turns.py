"""Which batches a server works on. Owners take turns, so that nobody's batches keep another owner's waiting."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from server.store.batches import Waiting

OWNERS_BATCHES = 4
"""The most batches of one owner at work."""

ALL_BATCHES = 8
"""The most at work. More only if the others merely need to be ended."""

TURN_S = 10.0
"""After this time a batch gives way to one of an owner who has none at work."""


@dataclass(slots=True)
class Work:
    """A batch at work. `judging` says that it can be left at any moment and loses next to nothing."""

    owner: str
    task: asyncio.Task[None]
    since: float = field(default_factory=time.monotonic)
    judging: bool = False


class Turns:
    """The batches at work, by their ids, and who comes next."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.at_work: dict[str, Work] = {}
        self._clock = clock
        self._served: dict[str, None] = {}
        """Owners in the order of their last turns, the latest last."""

    def begin(self, batch_id: str, work: Work) -> None:
        self.at_work[batch_id] = work
        self._served.pop(work.owner, None)
        self._served[work.owner] = None

    @property
    def full(self) -> bool:
        return len(self.at_work) >= ALL_BATCHES

    @property
    def overfull(self) -> bool:
        """Whether even batches that only need to be ended must wait."""
        return len(self.at_work) >= 2 * ALL_BATCHES

    def next(self, waiting: Sequence[Waiting]) -> Waiting | None:
        """First those with the fewest batches at work, then those whose last turn is the longest ago."""
        counts = self._counts()
        order = {owner: number for number, owner in enumerate(self._served)}
        allowed = [batch for batch in waiting if counts[batch.owner] < OWNERS_BATCHES]
        return min(allowed, key=lambda batch: (counts[batch.owner], order.get(batch.owner, -1)), default=None)

    def give_way(self, to: Waiting) -> None:
        """End the work on one batch if fairness asks for it. Its lines without a result are judged in a later turn."""
        counts = self._counts()
        candidates = [work for work in self.at_work.values() if work.judging and not work.task.cancelling()]
        if not candidates or any(work.task.cancelling() for work in self.at_work.values()):
            return
        work = max(candidates, key=lambda work: (counts[work.owner], -work.since))
        has_more = counts[work.owner] > counts[to.owner] + 1
        had_its_turn = counts[to.owner] == 0 and self._clock() - work.since >= TURN_S
        if has_more or had_its_turn:
            work.task.cancel()

    def _counts(self) -> Counter[str]:
        return Counter(work.owner for work in self.at_work.values())
