"""`python -m server check`: judge one text, or every row of a file, from the command line.

Its own engine and a running server get the same requests: both are HTTP to the same API, the former without a socket.
So the command line gives the same verdict as a client would get.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr
from tqdm import tqdm

from server.commands.rows import messages_of, read_rows
from server.domain.errors import OperatorError
from server.settings import API_KEY_VARIABLE, Settings

SAFE, UNSAFE, ERROR = 0, 1, 2
"""Exit status. For a file it is the worst of its rows."""

CONCURRENCY = 16
TRIES = 5
TIMEOUT_S = 600.0


def check(settings: Settings, options: argparse.Namespace) -> int:
    """Run the command. Raises OperatorError for contradictory options and for an unreachable engine."""
    if bool(options.file) == (options.text is not None or bool(options.image)):
        raise OperatorError("Give check either a text or --image, or --file with --out, but not both.")
    if options.file and options.response is not None:
        raise OperatorError("--response needs a text. In a file, give each row its own `response`.")
    if bool(options.file) != bool(options.out):
        raise OperatorError("Give both --file and --out, or neither.")
    return asyncio.run(_file(settings, options) if options.file else _single(settings, options))


# --- One text --------------------------------------------------------------------------------------------


async def _single(settings: Settings, options: argparse.Namespace) -> int:
    row = {"text": sys.stdin.read() if options.text == "-" else options.text or "", "images": options.image}
    if options.response is not None:
        row["response"] = options.response
    messages = messages_of(row, Path())
    async with _client(settings, options) as client:
        answer = await _ask(client, messages)
    print(json.dumps(answer) if options.json else _in_words(answer))  # noqa: T201
    return _status(answer)


def _in_words(answer: dict[str, Any]) -> str:
    if "error" in answer:
        return f"error: {answer['error']['message']}"
    words = [answer["verdict"], ",".join(answer["categories"])]
    if answer.get("p_unsafe") is not None:
        words.append(f"(P(unsafe) {answer['p_unsafe']:.4f})")
    return " ".join(filter(None, words))


# --- A file of rows --------------------------------------------------------------------------------------


async def _file(settings: Settings, options: argparse.Namespace) -> int:
    # The command does nothing else meanwhile, so blocking reads and writes delay nothing.
    rows, out = Path(options.file), Path(options.out)
    fingerprints: dict[str, str] = {}
    for id_, row in _read_rows(rows):
        if id_ in fingerprints:
            raise OperatorError(f"{rows}: two rows have the same id. Give each row a different id.")
        fingerprints[id_] = _fingerprint(row)
    if not fingerprints:
        raise OperatorError(f"{rows}: the file has no rows to judge.")
    statuses = _resume(out, fingerprints)
    todo = iter([(id_, row) for id_, row in _read_rows(rows) if id_ not in statuses])
    total = len(fingerprints)
    async with _client(settings, options) as client:
        counts = Counter(_NAMES[status] for status in statuses.values())
        with (
            out.open("a", encoding="utf-8") as sink,  # noqa: ASYNC230
            tqdm(total=total, initial=len(statuses), unit="row") as bar,
        ):

            async def work() -> None:
                for id_, row in todo:
                    answer = await _ask_about(client, row, rows.parent)
                    statuses[id_] = _status(answer)
                    sink.write(json.dumps({"id": id_, "row": fingerprints[id_], **answer}) + "\n")
                    sink.flush()
                    counts[_NAMES[statuses[id_]]] += 1
                    bar.set_postfix(counts)
                    bar.update()

            await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
    return max(statuses.values())


_NAMES = {SAFE: "safe", UNSAFE: "unsafe", ERROR: "errors"}


def _read_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Id and content of every row. The id of a row without `id` is its line number."""
    for number, row in read_rows(file):
        yield str(row.get("id", number)), row


def _fingerprint(row: dict[str, Any]) -> str:
    """A digest that shows whether a row is still the one that was judged."""
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:16]


def _resume(out: Path, fingerprints: Mapping[str, str]) -> dict[str, int]:
    """Statuses of the rows for which `out` has verdicts.

    Errors, verdicts on rows that have changed, and a line that was cut off are removed from `out`.
    """
    if not out.exists():
        return {}
    kept, statuses = [], {}
    for line in out.read_text(encoding="utf-8").splitlines(keepends=True):
        try:
            answer = json.loads(line) if line.endswith("\n") else {}
            id_, judged = str(answer.get("id")), answer.get("row")
        except (ValueError, AttributeError):
            raise OperatorError(
                f"{out}: the file holds something other than verdicts. Choose another file with --out."
            ) from None
        if judged is not None and judged == fingerprints.get(id_) and _status(answer) != ERROR:
            kept.append(line)
            statuses[id_] = _status(answer)
    rewritten = out.with_name(out.name + ".resume")
    rewritten.write_text("".join(kept), encoding="utf-8")
    rewritten.replace(out)
    return statuses


async def _ask_about(client: httpx.AsyncClient, row: dict[str, Any], folder: Path) -> dict[str, Any]:
    try:
        messages = messages_of(row, folder)
    except OperatorError as error:
        return {"error": {"message": str(error), "code": "invalid_row"}}
    return await _ask(client, messages)


# --- From a row to a verdict -----------------------------------------------------------------------------


async def _ask(client: httpx.AsyncClient, messages: Iterable[Any]) -> dict[str, Any]:
    """The verdict's detail, or the error's body. Waits and tries again while the server reports that it is busy."""
    for attempt in range(1, TRIES + 1):
        try:
            response = await client.post("chat/completions", json={"messages": list(messages)})
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return {"error": {"message": f"The server cannot be reached ({type(error).__name__}).", "code": None}}
        # Only a response with Retry-After is worth another try.
        retry_after = response.headers.get("retry-after", "")
        if response.is_success or not retry_after.isdecimal() or attempt == TRIES:
            break
        await asyncio.sleep(int(retry_after))
    try:
        body = response.json()
        answer: dict[str, Any] = body["guard"] if response.is_success else {"error": body["error"]}
        return answer
    except (ValueError, KeyError, TypeError):
        return {
            "error": {
                "message": f"The server answered with status {response.status_code} and without a verdict.",
                "code": None,
            }
        }


def _status(answer: dict[str, Any]) -> int:
    return {"safe": SAFE, "unsafe": UNSAFE}.get(answer.get("verdict", ""), ERROR)


@contextlib.asynccontextmanager
async def _client(settings: Settings, options: argparse.Namespace) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the server at --url, or of one in this process."""
    if options.url:
        base = options.url.rstrip("/").removesuffix("/v1") + "/v1/"
        key = options.api_key or os.environ.get(API_KEY_VARIABLE)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        async with httpx.AsyncClient(base_url=base, headers=headers, timeout=TIMEOUT_S) as client:
            yield client
        return
    from server.app import create_app
    from server.checkpoints.profile import load_profile
    from server.loading import load_backend

    # A verdict on the command line stores nothing and needs no keys.
    settings = settings.model_copy(update={"database_url": SecretStr("sqlite://"), "auth": "off", "audit": ""})
    profile = load_profile(settings.profile)
    app = create_app(settings, profile, load_backend(settings, profile))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost/v1/", timeout=None) as client,  # noqa: S113
    ):
        yield client
