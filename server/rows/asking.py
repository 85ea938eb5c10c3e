"""Questions to a server that may be busy or restarting."""

import asyncio
import random
import time
from collections.abc import Iterable, Mapping
from typing import Any

import httpx

from server.domain.errors import OperatorError
from server.rows.journal import Answer

TRIES = 5
"""Tries for a row that fails for its own reasons, such as a deadline. While the server is away the row waits."""

LONGEST_WAIT_S = 5.0

AWAY = frozenset({502, 503})
BUSY = 429
STOPS = frozenset({401, 403, 404, 405})
"""Statuses that every row would get."""

PATIENCE_S = 300.0


class Asker:
    """Asks for verdicts on conversations.

    While the server cannot be reached, is not ready or is busy, it waits and tries again. It gives up once no question
    has been answered for `patience_s`.
    """

    def __init__(self, client: httpx.AsyncClient, policy: Mapping[str, Any], patience_s: float = PATIENCE_S) -> None:
        """`policy` goes with every question, as in a request's body."""
        self._client = client
        self._policy = dict(policy)
        self._patience_s = patience_s
        self._heard_at = time.monotonic()

    async def check_server(self) -> None:
        """Raises OperatorError if there is no such server, so that a wrong URL costs no time."""
        try:
            response = await self._client.get("models")
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise OperatorError(
                f"The server at {self._client.base_url} cannot be reached ({_cause(error)}). Check that it is running,"
                " and that --url is right."
            ) from None
        if response.status_code in STOPS:
            raise _refused(response)

    async def ask(self, messages: Iterable[Any]) -> Answer:
        """The verdict's detail, or `{"error": {"message", "code"}}` if this question has none.

        Raises OperatorError if the server stays away, or refuses every question.
        """
        body: dict[str, Any] = {"messages": list(messages)}
        if self._policy:
            body["policy"] = self._policy
        failures = tries = 0
        while True:
            failures += 1
            try:
                response = await self._client.post("chat/completions", json=body)
            except httpx.TransportError as error:
                self._check_patience(_cause(error))
                await asyncio.sleep(_wait(failures))
                continue
            status = response.status_code
            if status in AWAY and response.headers.get("x-should-retry") != "false":
                self._check_patience(f"status {status}")
            else:
                self._heard_at = time.monotonic()
                tries += status != BUSY
                if status in STOPS:
                    raise _refused(response)
                if not _may_help(response) or tries >= TRIES:
                    return _answer_of(response)
            told = response.headers.get("retry-after", "")
            await asyncio.sleep(max(_wait(failures), min(float(told), LONGEST_WAIT_S) if told.isdecimal() else 0.0))

    def _check_patience(self, why: str) -> None:
        if time.monotonic() - self._heard_at > self._patience_s:
            raise OperatorError(
                f"The server has not answered for {self._patience_s:g} seconds ({why}). Once it is back, run the same"
                " command again: it goes on where it stopped."
            )


def _wait(failures: int) -> float:
    """Seconds, longer after each failure and never the same, so that rows do not all come back at once."""
    longest: float = min(LONGEST_WAIT_S, 0.1 * 2 ** min(failures, 10))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311


def _may_help(response: httpx.Response) -> bool:
    """Whether to ask again may help."""
    if response.is_success:
        return False
    return response.status_code == BUSY or response.headers.get("x-should-retry") == "true"


def _answer_of(response: httpx.Response) -> Answer:
    """Anything that is not clearly a verdict is an error."""
    try:
        body = response.json()
        answer: Answer = body["guard"] if response.is_success else {"error": body["error"]}
        if response.is_success and answer["verdict"] not in ("safe", "unsafe"):
            raise ValueError
        return answer
    except (ValueError, KeyError, TypeError):
        message = f"The server answered with status {response.status_code} and without a verdict."
        return {"error": {"message": message, "code": None}}


def _refused(response: httpx.Response) -> OperatorError:
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = "Check that --url is the address of a llama-guard-server."
    return OperatorError(f"The server refuses every row with status {response.status_code}: {message}")


def _cause(error: Exception) -> str:
    """What happened, in a few words."""
    return str(error) or type(error).__name__
