"""A backend that answers by a script: no model, no waiting, every fault on demand."""

import asyncio
import copy
import gc
import inspect
import math
import re
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from server.backends.base import Case
from server.domain.conversation import ImagePart, TextPart
from server.domain.errors import GuardError
from server.domain.verdict import Completion, Levels, ScoreMethod, Token, check_finished
from server.moderation.moderator import PROBE
from tests.readings import reading

UNSAFE_WORD = "bomb"
"""What makes `by_word` answer unsafe, with S1 and S9."""

Script = Callable[[Case], Completion | Awaitable[Completion]]


class FakeBackend:
    """Answers cases by `script`, which may be exchanged at any time, and keeps count of them.

    `cases` holds what callers sent; the server's own probes are only counted.
    """

    name = "fake"
    model = "fake-guard"

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or by_word
        self.alive = True
        self.heard_at = -math.inf
        self.started = False
        self.closed = False
        self.cases: list[Case] = []
        self.probes = 0
        self.running = 0
        self.most_running = 0
        self.cancelled = 0

    async def start(self) -> None:
        self.started = True

    async def close(self) -> None:
        self.closed = True

    async def probe(self, case: Case) -> Completion | None:
        return await self.complete(case)

    async def complete(self, case: Case) -> Completion:
        if case.conversation == PROBE:
            self.probes += 1
        else:
            self.cases.append(case)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            answer = self.script(case)
            return await answer if inspect.isawaitable(answer) else answer
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def busy_with(self, count: int) -> None:
        """Wait until so many cases are in work."""
        await until(lambda: self.running == count)

    @property
    def asked(self) -> list[str]:
        """What each case asks about: the last text of its last turn."""
        return [case.conversation.turns[-1].texts[-1] for case in self.cases]

    @property
    def texts(self) -> list[str]:
        """All text of each case, speakers included."""
        return [words_of(case) for case in self.cases]


def words_of(case: Case) -> str:
    return " / ".join(f"{turn.role.capitalize()}: {' + '.join(turn.texts)}" for turn in case.conversation.turns)


class Gate:
    """Holds back who waits at it until it is opened, from whichever thread."""

    def __init__(self) -> None:
        self._opened = threading.Event()

    def open(self) -> None:
        self._opened.set()

    async def passed(self) -> None:
        await until(self._opened.is_set, within=60)


async def until(condition: Callable[[], bool], within: float = 30.0) -> None:
    """Wait for what has no event of its own, such as another thread's doing. Raises TimeoutError."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def parts_in_memory() -> set[int]:
    """What somebody asked, by identity: all texts and images that are still there, garbage included.

    And errors: the frames that one has passed through hold the body of the request.
    """
    return {id(thing) for thing in gc.get_objects() if issubclass(type(thing), TextPart | ImagePart | GuardError)}


# --- Completions -----------------------------------------------------------------------------------------


def completion(case: Case, text: str, *, p_unsafe: float | None = None, **fields: Any) -> Completion:
    """What an engine that wrote `text` would report for `case`. Each further listed code is less probable."""
    taxonomy = case.policy.taxonomy
    if case.conversation.images:
        taxonomy = taxonomy.for_images()
    if p_unsafe is None:
        p_unsafe = 0.02 if text == "safe" else 0.98
    codes = text.partition("\n")[2].split(",")
    given = {code: 0.9 / (1 + codes.index(code)) if code in codes else 0.01 for code in taxonomy.codes}
    method = ScoreMethod.WRITTEN_LIST if codes != [""] else ScoreMethod.FIRST_CODE
    scored = text != "safe" or p_unsafe >= case.policy.scores_from
    read: dict[str, Any] = {
        "levels": Levels(safe=0.99 * (1 - p_unsafe), unsafe=0.99 * p_unsafe),
        "shares": given if scored else None,
        "score_method": method if scored else None,
        "tokens": spelt(text, p_unsafe, case.handling.top_logprobs),
    }
    read |= {name: fields.pop(name) for name in (*read, "listed", "no_scores") if name in fields}
    defaults: dict[str, Any] = {
        "finish_reason": "stop",
        "backend": FakeBackend.name,
        "model": FakeBackend.model,
        "taxonomy": taxonomy,
        "prompt_tokens": 200 + len(words_of(case).split()),
        "completion_tokens": 1 if text == "safe" else 5,
        "cached_tokens": 128,
        "images": len(case.images),
        "tiles": len(case.images),
        "queued_s": 0.001,
        "computed_s": 0.002,
    }
    check_finished(fields.get("finish_reason", "stop"))  # before anything is read, as backends do
    return Completion(reading(text, case.policy, **read), **{**defaults, **fields})


def spelt(text: str, p_unsafe: float, top: int | None) -> tuple[Token, ...] | None:
    """Tokens as the engine's tokenizer cuts an answer, none where nobody asked for their probabilities."""
    if top is None:
        return None
    words = {b"unsafe": math.log(0.99 * p_unsafe), b"safe": math.log(0.99 * (1 - p_unsafe))}
    likeliest = tuple(Token(word, words[word]) for word in sorted(words, key=lambda word: -words[word]))
    word = text.partition("\n")[0].encode()
    tokens = [Token(word, words[word], likeliest[:top])]
    for piece in re.findall(rb"\n|,?S|[0-9]+", text.encode().removeprefix(word)):
        others = (Token(piece, -0.1), Token(b"13", -3.0), Token(b"\xe2\x80", -4.0))
        tokens.append(Token(piece, -0.1, others[:top]))
    return tuple(tokens)


# --- Scripts ---------------------------------------------------------------------------------------------


def by_word(case: Case) -> Completion:
    """Unsafe with S1 and S9, as far as they are asked about, when the message that is asked about holds UNSAFE_WORD."""
    if UNSAFE_WORD not in "".join(case.conversation.turns[-1].texts[-1:]):
        return completion(case, "safe")
    listed = ",".join(code for code in ("S1", "S9") if code in case.policy.taxonomy.codes)
    return completion(case, f"unsafe\n{listed}" if listed else "unsafe")


def always(text: str, **fields: Any) -> Script:
    return lambda case: completion(case, text, **fields)


def failing(error: BaseException) -> Script:
    def script(case: Case) -> Completion:
        raise copy.copy(error)  # each time anew: an error keeps the frames that it passed

    return script


async def hanging(case: Case) -> Completion:
    """Never answers; ends only by being cancelled."""
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


def held_at(gate: Gate, script: Script = by_word) -> Script:
    """Answers once `gate` is open; probes are not held."""

    async def held(case: Case) -> Completion:
        if case.conversation != PROBE:
            await gate.passed()
        answer = script(case)
        return await answer if inspect.isawaitable(answer) else answer

    return held


def lasting(seconds: Callable[[str], float], script: Script = by_word) -> Script:
    """Takes as long as `seconds` says for the words of a case."""

    async def slow(case: Case) -> Completion:
        await asyncio.sleep(seconds(words_of(case)))
        answer = script(case)
        return await answer if inspect.isawaitable(answer) else answer

    return slow
