"""An engine's part, played by a script: a family's steps are driven with answers that a test makes up."""

import math
from collections.abc import Callable, Sequence

from server.domain.verdict import Completion, Reading, Verdict, judge
from server.families.base import Answer, Ask, Steps
from server.families.tokenizer import PromptTokenizer

Script = Callable[[Ask], Answer]


def drive(steps: Steps, script: Script) -> tuple[Reading, list[Ask]]:
    """What the steps end with, and all that was asked."""
    asked: list[Ask] = []
    asks = next(steps)
    while True:
        asked += asks
        try:
            asks = steps.send([script(ask) for ask in asks])
        except StopIteration as done:
            return done.value, asked


def verdict_of(reading: Reading, asked: Sequence[Ask], policy) -> Verdict:
    return judge(Completion(reading, "stop", "scripted", asked[0].prompt.taxonomy), policy)


def control_id(tokenizer: PromptTokenizer, token: str) -> int:
    """The id of an added token that the vocabulary has."""
    id_ = tokenizer.control_id(token)
    assert id_ is not None
    return id_


def answer_of(tokenizer: PromptTokenizer, text: str, *places: dict[str, float], end: int | None = None) -> Answer:
    """`text` in tokens, where `places` give the probabilities of words at its first tokens."""
    ids = [*tokenizer.encode_text(text), *([] if end is None else [end])]
    logprobs: list[dict[int, float]] = [{} for _ in ids]
    for at, probabilities in enumerate(places):
        for word, probability in probabilities.items():
            (id_,) = tokenizer.encode_text(word)
            logprobs[at][id_] = math.log(probability)
    return Answer(ids, list(logprobs))
