"""`llama-guard-server check`: judge one text, or every row of a file, from the command line.

Its own engine and a running server get the same requests: both are HTTP to the same API, the former without a socket.
So the command line gives the same verdict as a client would get.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr
from tqdm import tqdm

from server.commands.urls import base_url
from server.domain.errors import OperatorError
from server.rows.asking import CONNECT_S, Asker, timeout_for
from server.rows.messages import messages_of
from server.rows.pipeline import Run, check_files, work_through
from server.settings import API_KEY_VARIABLE, Settings

SAFE, UNSAFE, ERROR = 0, 1, 2
"""Exit status. For a file it is the worst of its rows."""

TIMEOUT_S = 600.0
SINGLE_PATIENCE_S = 10.0


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
    policy = _policy(options)
    async with _client(settings, options, httpx.Timeout(TIMEOUT_S, connect=CONNECT_S)) as client:
        asker = Asker(client, policy, SINGLE_PATIENCE_S)
        await asker.check_server()
        answer = await asker.ask(messages)
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
    run = Run(
        file=Path(options.file),
        out=Path(options.out),
        text=options.column,
        policy=_policy(options),
        concurrency=options.concurrency,
        overwrite=options.overwrite,
    )
    check_files(run)
    async with _client(settings, options, timeout_for(options.patience)) as client:
        asker = Asker(client, run.policy, options.patience)
        run = replace(run, model=await asker.check_server())
        with tqdm(unit="row") as bar:

            def show(rows: int, total: int, counts: Mapping[str, int]) -> None:
                bar.total = total
                bar.set_postfix(counts, refresh=False)
                bar.update(rows)

            summary = await work_through(run, asker.ask, show)
    print(f"guard: {summary}; written to {run.out}", file=sys.stderr)  # noqa: T201
    return ERROR if summary.counts["errors"] else UNSAFE if summary.counts["unsafe"] else SAFE


def _policy(options: argparse.Namespace) -> dict[str, Any]:
    """The request's `policy` that the flags ask for. Empty: the server's own. Raises OperatorError."""
    policy: dict[str, Any] = {} if options.policy is None else _read_policy(Path(options.policy))
    if options.threshold is not None:
        policy["threshold"] = options.threshold
    if options.exclude:
        policy["excluded_categories"] = [code.strip() for code in options.exclude.split(",") if code.strip()]
    return policy


def _read_policy(file: Path) -> dict[str, Any]:
    """What is in it is for the server to check, which knows its categories."""
    try:
        policy = json.loads(file.read_bytes())
    except OSError as error:
        raise OperatorError(f"{file}: cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise OperatorError(f"{file}: is not JSON ({error}).") from None
    if not isinstance(policy, dict):
        raise OperatorError(f'{file}: must hold one JSON object, such as {{"threshold": 0.3}} (docs/api.md).')
    return policy


# --- From a question to a verdict ------------------------------------------------------------------------


def _status(answer: dict[str, Any]) -> int:
    return {"safe": SAFE, "unsafe": UNSAFE}.get(answer.get("verdict", ""), ERROR)


@contextlib.asynccontextmanager
async def _client(
    settings: Settings, options: argparse.Namespace, timeouts: httpx.Timeout
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the server at --url, or of one in this process."""
    if options.url:
        base = base_url(options.url)
        key = options.api_key or os.environ.get(API_KEY_VARIABLE)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        # --concurrency is the only limit: with httpx's own, rows beyond 100 would take the wait for an absent server.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(base_url=base, headers=headers, timeout=timeouts, limits=limits) as client:
            yield client
        return
    from server.app import create_app
    from server.checkpoints.profile import load_profile
    from server.loading import load_backend

    # A verdict on the command line stores nothing and needs no keys, and nobody reaches it to whom that would matter.
    logging.getLogger("server.api.http.access").setLevel(logging.WARNING)
    settings = settings.model_copy(update={"database_url": SecretStr("sqlite://"), "auth": "off", "audit": ""})
    profile = load_profile(settings.profile)
    print(f"guard: starting an engine for {profile.name}; --url asks a running server instead", file=sys.stderr)  # noqa: T201
    app = create_app(settings, profile, load_backend(settings, profile))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://localhost/v1/", timeout=None) as client,  # noqa: S113
    ):
        yield client
