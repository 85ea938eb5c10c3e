"""What a command makes of a server that is away, busy, hung, or not the one that it should be."""

import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from server.domain.errors import OperatorError
from server.rows import asking
from server.rows.asking import Asker

VERDICT = {"verdict": "safe", "categories": []}
MESSAGES = [{"role": "user", "content": "half \ud800"}]

Handler = Callable[[httpx.Request], httpx.Response]


def verdict(_: httpx.Request) -> httpx.Response:
    return httpx.Response(200, json={"guard": VERDICT})


def error(status: int, code: str = "x", param: str | None = None, **headers: str) -> Handler:
    document = {"error": {"message": "Why.", "code": code, "param": param}}
    return lambda _: httpx.Response(status, json=document, headers=headers)


def lost(_: httpx.Request) -> httpx.Response:
    raise httpx.ReadError("connection reset")


class Server:
    """Answers questions by a script, the last entry for ever."""

    def __init__(self, *script: Handler, ready: bool = False) -> None:
        self.asked: list[tuple[float, Any]] = []
        self._script = list(script)
        self._ready = ready

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/ready":
            return httpx.Response(200 if self._ready else 503)
        content = request.content
        self.asked.append((time.monotonic(), json.loads(content) if content else None))
        return (self._script.pop(0) if len(self._script) > 1 else self._script[0])(request)

    def asker(self, patience_s: float = 0.5, **policy: Any) -> Asker:
        client = httpx.AsyncClient(transport=httpx.MockTransport(self), base_url="http://guard/v1/")
        return Asker(client, policy, patience_s)

    @property
    def waits(self) -> list[float]:
        times = [at for at, _ in self.asked]
        return [later - earlier for earlier, later in itertools.pairwise(times)]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "LONGEST_WAIT_S", 0.05)


PAGE = httpx.Response(200, text="<html>We will be back.</html>")


@pytest.mark.parametrize(
    "away",
    [
        lost,
        error(503),
        error(502),
        lambda _: httpx.Response(500, text="upstream"),
        lambda _: httpx.Response(504, text=""),
        lambda _: httpx.Response(302, headers={"location": "/login"}),
        lambda _: PAGE,
        lambda _: httpx.Response(200, json=["no object"]),
    ],
    ids=["lost", "503", "502", "500", "504", "302", "page", "list"],
)
async def test_a_row_waits_until_the_server_is_back(away: Handler) -> None:
    server = Server(away, away, away, verdict)
    assert await server.asker().ask(MESSAGES) == VERDICT
    gone = Server(away)
    with pytest.raises(OperatorError, match=r"has not answered for 0\.5 seconds .* run the same command again"):
        await gone.asker().ask(MESSAGES)
    assert 0.4 < gone.asked[-1][0] - gone.asked[0][0] < 5


@pytest.mark.parametrize("status", [429, 503])
async def test_the_wait_that_the_server_names_is_kept(status: int) -> None:
    server = Server(error(status, **{"retry-after": "1"}), verdict)
    assert await server.asker(5).ask(MESSAGES) == VERDICT
    assert server.waits[0] >= 1


async def test_a_busy_server_is_no_absent_one() -> None:
    busy = error(429)
    server = Server(*[busy] * 30, verdict)
    assert await server.asker(0.2).ask(MESSAGES) == VERDICT
    assert sum(server.waits) > 0.2


@pytest.mark.parametrize("fault", [lost, error(503), lambda _: PAGE], ids=["lost", "503", "page"])
async def test_a_row_that_a_ready_server_never_answers_costs_only_itself(fault: Handler) -> None:
    server = Server(fault, ready=True)
    answer = await server.asker(0.3).ask(MESSAGES)
    assert answer["error"]["code"] == "no_verdict"


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (error(400, "empty_input"), "empty_input"),
        (error(413, "too_large"), "too_large"),
        (error(500, "unparseable_verdict"), "unparseable_verdict"),
        (lambda _: httpx.Response(200, json={"guard": {"verdict": "fine"}}), "no_verdict"),
        (lambda _: httpx.Response(200, json={"choices": []}), "no_verdict"),
        (lambda _: httpx.Response(200, json={"guard": {**VERDICT, "error": "x"}}), "no_verdict"),
        (lambda _: httpx.Response(400, json={"error": "x"}), "no_verdict"),
    ],
)
async def test_an_error_of_the_row_is_its_answer(fault: Handler, code: str) -> None:
    server = Server(fault, verdict)
    answer = await server.asker().ask(MESSAGES)
    assert answer["error"]["code"] == code
    assert "verdict" not in answer
    assert len(server.asked) == 1


async def test_what_may_pass_is_tried_a_few_times() -> None:
    late = error(504, "deadline_exceeded", **{"x-should-retry": "true"})
    assert await Server(late, late, verdict).asker().ask(MESSAGES) == VERDICT
    server = Server(late)
    assert (await server.asker().ask(MESSAGES))["error"]["code"] == "deadline_exceeded"
    assert len(server.asked) == asking.TRIES


@pytest.mark.parametrize(
    "refusal",
    [error(401), error(403), error(404), error(405), error(400, param="policy"), error(400, param="policy.threshold")],
)
async def test_what_every_row_would_get_ends_the_run(refusal: Handler) -> None:
    with pytest.raises(OperatorError, match=r"refuses every row with status 4.*: Why\."):
        await Server(refusal).asker().ask(MESSAGES)


async def test_half_a_surrogate_and_the_policy_reach_the_server() -> None:
    server = Server(verdict)
    await server.asker(threshold=0.25).ask(MESSAGES)
    assert server.asked[0][1] == {"messages": MESSAGES, "policy": {"threshold": 0.25}}


async def test_the_model_is_asked_for_once_the_server_is_up() -> None:
    models = httpx.Response(200, json={"object": "list", "data": [{"id": "guard"}]})
    assert await Server(error(503), error(429), lambda _: models).asker().check_server() == "guard"
    with pytest.raises(OperatorError, match="has not answered for"):
        await Server(error(503)).asker(0.2).check_server()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lost, "cannot be reached \\(connection reset\\)"),
        (error(401), "refuses every row with status 401"),
        (lambda _: httpx.Response(404, text=""), "Check that --url"),
        (lambda _: PAGE, "is none that judges"),
        (lambda _: httpx.Response(200, json={"models": []}), "is none that judges"),
    ],
)
async def test_a_wrong_url_is_told_at_once(answer: Handler, said: str) -> None:
    started = time.monotonic()
    with pytest.raises(OperatorError, match=said):
        await Server(answer).asker(60).check_server()
    assert time.monotonic() - started < 5
