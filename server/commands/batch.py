"""`python -m server batch`: upload a file to a running server, watch its batch, and fetch the results.

Exit status as for `check`: 0 if all fetched lines are safe, or the command is done; 1 if a line is unsafe; 2 for an
error, a batch that did not complete, or a line without a verdict.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import httpx
from tqdm import tqdm

from server.commands.rows import messages_of, read_rows
from server.domain.errors import OperatorError
from server.settings import API_KEY_VARIABLE

SAFE, UNSAFE, ERROR = 0, 1, 2
ENDED = ("completed", "failed", "expired", "cancelled")
PATIENCE_S = 300.0
"""The time for which a server may be unreachable, as in a restart, before the command gives up."""

CHAT = "/v1/chat/completions"


def run(options: argparse.Namespace) -> int:
    """Run the command. Raises OperatorError."""
    headers = {"authorization": f"Bearer {key}"} if (key := options.api_key or os.environ.get(API_KEY_VARIABLE)) else {}
    base = options.url.rstrip("/").removesuffix("/v1") + "/v1/"
    try:
        with httpx.Client(base_url=base, headers=headers, timeout=60) as client:
            status: int = options.action(client, options)
            return status
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise OperatorError(
            f"The server cannot be reached ({type(error).__name__}). Check that it is running and that --url is right."
        ) from None


def submit(client: httpx.Client, options: argparse.Namespace) -> int:
    with tempfile.TemporaryFile() as lines:
        endpoint = _write_lines(Path(options.file), options.endpoint, lines)
        lines.seek(0)
        name = Path(options.file).name
        file = _ask(client, "POST", "files", data={"purpose": "batch"}, files={"file": (name, lines)})
    body = {"input_file_id": file["id"], "endpoint": endpoint, "completion_window": "24h"}
    batch = _ask(client, "POST", "batches", json=body)
    print(batch["id"], flush=True)  # noqa: T201
    if options.out:
        return _fetch(client, batch["id"], Path(options.out))
    if options.wait:
        batch = _wait(client, batch["id"])
        _say(batch)
        return SAFE if batch["status"] == "completed" and not batch["request_counts"]["failed"] else ERROR
    return SAFE


def status(client: httpx.Client, options: argparse.Namespace) -> int:
    if options.id:
        batches = [_ask(client, "GET", f"batches/{options.id}")]
    else:
        batches = _ask(client, "GET", "batches", params={"limit": 100})["data"]
    for batch in batches:
        _say(batch)
    return ERROR if options.id and batches[0]["status"] == "failed" else SAFE


def fetch(client: httpx.Client, options: argparse.Namespace) -> int:
    return _fetch(client, options.id, Path(options.out))


# --- A file of lines -------------------------------------------------------------------------------------


def _write_lines(file: Path, endpoint: str | None, lines: IO[bytes]) -> str:
    """Write batch lines, either those of the file or made from rows as for `check --file`. Returns their endpoint."""
    for number, row in read_rows(file):
        if "custom_id" in row and "body" in row:
            endpoint = endpoint or str(row.get("url"))
        else:
            if endpoint not in (None, CHAT):
                raise OperatorError(
                    f"{file}: line {number} has no custom_id and body, so it is a row of text. Rows of text only go to"
                    f" {CHAT}. Leave out --endpoint."
                )
            endpoint = CHAT
            try:
                body = {"messages": messages_of(row, file.parent)}
            except OperatorError as error:
                raise OperatorError(f"{file}: line {number}: {error}") from None
            row = {"custom_id": str(row.get("id", number)), "method": "POST", "url": CHAT, "body": body}
        lines.write(json.dumps(row).encode() + b"\n")
    if endpoint is None:
        raise OperatorError(f"{file}: the file has no lines to judge.")
    return endpoint


# --- Watching and fetching -------------------------------------------------------------------------------


def _wait(client: httpx.Client, batch_id: str) -> dict[str, Any]:
    """The batch once it has ended. Waits for a server that is being restarted."""
    since = time.monotonic()
    with tqdm(unit="line") as bar:
        while True:
            try:
                batch = _ask(client, "GET", f"batches/{batch_id}")
                since = time.monotonic()
            except (httpx.TransportError, _Unavailable):
                if time.monotonic() - since > PATIENCE_S:
                    raise
                time.sleep(1.0)
                continue
            counts = batch["request_counts"]
            bar.total = counts["total"] or None
            bar.set_description(batch["status"], refresh=False)
            bar.n = counts["completed"] + counts["failed"]
            bar.refresh()
            if batch["status"] in ENDED:
                return batch
            time.sleep(0.5)


def _fetch(client: httpx.Client, batch_id: str, out: Path) -> int:
    """Wait for the end and write all results, good and bad, to `out`. The file gets all of them or none."""
    batch = _wait(client, batch_id)
    _say(batch)
    statuses = [SAFE if batch["status"] == "completed" else ERROR]
    part = out.with_name(out.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as sink:
            for kind in ("output_file_id", "error_file_id"):
                for line in _content(client, batch.get(kind)):
                    sink.write(line + "\n")
                    statuses.append(_verdict(line))
        part.replace(out)
    except OSError as error:
        raise OperatorError(f"{out}: cannot be written: {error.strerror}.") from error
    return max(statuses)


def _content(client: httpx.Client, file_id: str | None) -> Iterator[str]:
    if file_id is None:
        return
    with client.stream("GET", f"files/{file_id}/content") as response:
        if not response.is_success:
            response.read()
            raise _refused(response)
        # Not str.splitlines, which also splits at characters that JSON does not escape.
        rest = b""
        for piece in response.iter_bytes():
            *lines, rest = (rest + piece).split(b"\n")
            yield from (line.decode() for line in lines)


def _verdict(line: str) -> int:
    """Exit status of one result. Anything that is not clearly a verdict is an error."""
    try:
        answer = json.loads(line)
        if answer["response"]["status_code"] != 200:
            return ERROR
        body = answer["response"]["body"]
        if "results" in body:
            flags = [result["flagged"] for result in body["results"]]
            if not flags or not all(isinstance(flag, bool) for flag in flags):
                return ERROR
            return UNSAFE if any(flags) else SAFE
        return {"safe": SAFE, "unsafe": UNSAFE}.get(body["guard"]["verdict"], ERROR)
    except (ValueError, KeyError, TypeError):
        return ERROR


def _say(batch: dict[str, Any]) -> None:
    counts = batch["request_counts"]
    print(  # noqa: T201
        f"{batch['id']} {batch['status']}: {counts['total']} lines, {counts['completed']} completed,"
        f" {counts['failed']} failed"
    )
    for fault in batch.get("errors", {}).get("data", ()):
        place = f"line {fault['line']}: " if fault.get("line") else ""
        print(f"guard: {place}{fault['code']}: {fault['message']}", file=sys.stderr)  # noqa: T201


# --- One request -----------------------------------------------------------------------------------------


class _Unavailable(OperatorError):
    """The server can be reached, but cannot answer now."""


def _ask(client: httpx.Client, method: str, path: str, **request: Any) -> dict[str, Any]:
    response = client.request(method, path, **request)
    if not response.is_success:
        raise _refused(response)
    try:
        document: dict[str, Any] = response.json()
    except ValueError:
        raise OperatorError(
            "The response is not JSON. Check that --url is the address of a llama-guard-server."
        ) from None
    return document


def _refused(response: httpx.Response) -> OperatorError:
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"status {response.status_code}"
    kind = _Unavailable if response.status_code in (429, 502, 503, 504) else OperatorError
    return kind(f"The server refused the request: {message}")
