"""Questions to a server that may be busy or restarting."""

import asyncio
import json
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

CONNECT_S = 10.0
LEAST_READ_S = 60.0
"""A slow answer is no absent server: so long it may take, however little patience there is."""


def timeout_for(patience_s: float) -> httpx.Timeout:
    """For the client of an Asker: a server that accepts questions and answers none is away, too."""
    return httpx.Timeout(max(patience_s, LEAST_READ_S), connect=CONNECT_S)


class Asker:
    """Asks for verdicts on conversations.

    While the server cannot be reached, is not ready or is busy, it waits and tries again. It gives up once no question
    has been answered for `patience_s`. A question that fails for so long while others are answered is at fault itself.
    """

    def __init__(self, client: httpx.AsyncClient, policy: Mapping[str, Any], patience_s: float = PATIENCE_S) -> None:
        """`policy` goes with every question, as in a request's body."""
        self._client = client
        self._policy = dict(policy)
        self._patience_s = patience_s
        self._heard_at = time.monotonic()

    async def check_server(self) -> str | None:
        """The name of the model that judges. Waits for a server that is starting.

        Raises OperatorError if there is no such server, so that a wrong URL costs no time.
        """
        self._heard_at = time.monotonic()
        failures = 0
        while True:
            try:
                response = await self._client.get("models")
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise OperatorError(
                    f"The server at {self._client.base_url} cannot be reached ({_cause(error)}). Check that it is"
                    " running, and that --url is right."
                ) from None
            if response.status_code not in (*AWAY, BUSY):
                break
            failures += 1
            await self._wait_for_server(f"status {response.status_code}", response, failures, self._heard_at)
        if not response.is_success:
            raise _refused(response)
        self._heard_at = time.monotonic()
        try:
            models = response.json()["data"]
            return str(models[0]["id"]) if models else None
        except (ValueError, KeyError, TypeError):
            raise OperatorError(
                f"The server at {self._client.base_url} is none that judges. Check that --url is the address of a"
                " llama-guard-server."
            ) from None

    async def ask(self, messages: Iterable[Any]) -> Answer:
        """The verdict's detail, or `{"error": {"message", "code"}}` if this question has none.

        Raises OperatorError if the server stays away, or refuses every question.
        """
        body: dict[str, Any] = {"messages": list(messages)}
        if self._policy:
            body["policy"] = self._policy
        # Not httpx's JSON, which is UTF-8: half a surrogate, which is in many a scraped text, has none.
        content, headers = json.dumps(body).encode(), {"content-type": "application/json"}
        failures, tries, since = 0, 0, time.monotonic()
        while True:
            try:
                response = await self._client.post("chat/completions", content=content, headers=headers)
            except httpx.TransportError as error:
                failures += 1
                if not await self._wait_for_server(_cause(error), None, failures, since):
                    return _no_answer(_cause(error))
                continue
            except httpx.HTTPError as error:
                return _no_answer(_cause(error))
            status = response.status_code
            if status not in STOPS and _is_not_of_the_server(response):
                failures += 1
                if not await self._wait_for_server(f"status {status}", response, failures, since):
                    return _no_answer(f"status {status}")
                continue
            self._heard_at = time.monotonic()
            if status in STOPS or _blames_policy(response):
                raise _refused(response)
            tries += status != BUSY
            if not _may_help(response) or tries >= TRIES:
                return _answer_of(response)
            failures += 1
            await asyncio.sleep(self._pause(response, failures))
            since = time.monotonic()

    async def _wait_for_server(self, why: str, response: httpx.Response | None, failures: int, since: float) -> bool:
        """Wait before the next try. False if the question is at fault, which is failing since then, not the server.

        Raises OperatorError if the server has been away for too long.
        """
        if time.monotonic() - max(self._heard_at, since) > self._patience_s and not await self._is_ready():
            raise OperatorError(
                f"The server has not answered for {self._patience_s:g} seconds ({why}). Once it is back, run the same"
                " command again: it goes on where it stopped."
            )
        if time.monotonic() - since > self._patience_s:
            return False
        await asyncio.sleep(self._pause(response, failures))
        return True

    async def _is_ready(self) -> bool:
        try:
            response = await self._client.get(self._client.base_url.join("../ready"), timeout=CONNECT_S)
        except httpx.HTTPError:
            return False
        return response.is_success

    def _pause(self, response: httpx.Response | None, failures: int) -> float:
        """Seconds, longer after each failure and never the same, so that rows do not all come back at once."""
        longest: float = min(LONGEST_WAIT_S, 0.1 * 2 ** min(failures, 10))
        told = "" if response is None else response.headers.get("retry-after", "")
        asked = min(float(told), self._patience_s) if told.isascii() and told.isdecimal() else 0.0
        return asked + longest * random.uniform(0.5, 1.0)  # noqa: S311


def _is_not_of_the_server(response: httpx.Response) -> bool:
    """Whether it is not up, or something in front of it answers in its place, such as a page about maintenance."""
    if response.status_code in AWAY and response.headers.get("x-should-retry") != "false":
        return True
    try:
        return not isinstance(response.json(), dict)
    except ValueError:
        return True


def _blames_policy(response: httpx.Response) -> bool:
    """Whether the server refuses the policy, which goes with every question."""
    if response.status_code != httpx.codes.BAD_REQUEST:
        return False
    try:
        return str(response.json()["error"]["param"]).partition(".")[0] == "policy"
    except (ValueError, KeyError, TypeError):
        return False


def _may_help(response: httpx.Response) -> bool:
    """Whether to ask again may help."""
    if response.is_success:
        return False
    return response.status_code == BUSY or response.headers.get("x-should-retry") == "true"


def _answer_of(response: httpx.Response) -> Answer:
    """Anything that is not clearly a verdict is an error."""
    try:
        body = response.json()
        if response.is_success:
            answer: Answer = body["guard"]
            if answer["verdict"] in ("safe", "unsafe") and not answer.get("error"):
                return answer
        else:
            return {"error": {"message": str(body["error"]["message"]), "code": body["error"].get("code")}}
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return _no_answer(f"status {response.status_code}")


def _no_answer(why: str) -> Answer:
    return {"error": {"message": f"The server gave no verdict on this row ({why}).", "code": "no_verdict"}}


def _refused(response: httpx.Response) -> OperatorError:
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = "Check that --url is the address of a llama-guard-server."
    return OperatorError(f"The server refuses every row with status {response.status_code}: {message}")


def _cause(error: Exception) -> str:
    """What happened, in a few words."""
    return str(error) or type(error).__name__
