"""`llama-guard-server batch`: upload a file to a running server, watch its batch, and fetch the results.

Exit status as for `check`: 0 if all fetched lines are safe, or the command is done; 1 if a line is unsafe; 2 for an
error, a batch that did not complete, or a line without a verdict.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import httpx
from tqdm import tqdm

from server.batches.lines import MAX_LINES
from server.commands.urls import base_url
from server.domain.errors import OperatorError
from server.rows.messages import messages_of
from server.rows.reading import Placed, Source
from server.settings import API_KEY_VARIABLE

SAFE, UNSAFE, ERROR = 0, 1, 2
ENDED = ("completed", "failed", "expired", "cancelled")
PATIENCE_S = 300.0
"""The time for which a server may be unreachable, as in a restart, before the command gives up."""

CHAT = "/v1/chat/completions"


def run(options: argparse.Namespace) -> int:
    """Run the command. Raises OperatorError."""
    headers = {"authorization": f"Bearer {key}"} if (key := options.api_key or os.environ.get(API_KEY_VARIABLE)) else {}
    base = base_url(options.url)
    try:
        with httpx.Client(base_url=base, headers=headers, timeout=60) as client:
            status: int = options.action(client, options)
            return status
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise OperatorError(
            f"The server cannot be reached ({type(error).__name__}). Check that it is running and that --url is right."
        ) from None


def submit(client: httpx.Client, options: argparse.Namespace) -> int:
    file = Path(options.file)
    if options.out:
        _check_out(Path(options.out), overwrite=options.overwrite, besides=file)
    _ask(client, "GET", "batches", params={"limit": 1})  # a wrong URL or key is told before anything is read
    batches: list[str] = []
    try:
        with contextlib.closing(_parts(file, options.endpoint, options.part_bytes)) as parts:
            for endpoint, lines in parts:
                for batch_id in _submit_part(client, file.name, endpoint, lines):
                    batches.append(batch_id)
                    print(batch_id, flush=True)  # noqa: T201
    except (OperatorError, httpx.HTTPError) as error:
        if not batches:
            raise
        raise OperatorError(
            f"{error} {len(batches)} batches were made before, and go on. Fetch them, or end them with `batch cancel`."
        ) from None
    if options.out:
        return _fetch(client, batches, Path(options.out))
    if options.wait:
        return max(_outcome(client, _wait(client, batch_id)) for batch_id in batches)
    return SAFE


def cancel(client: httpx.Client, options: argparse.Namespace) -> int:
    _say(_ask(client, "POST", f"batches/{options.id}/cancel"))
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
    _check_out(Path(options.out), overwrite=options.overwrite)
    return _fetch(client, [options.id], Path(options.out))


# --- A file of lines -------------------------------------------------------------------------------------


def _parts(file: Path, endpoint: str | None, most_bytes: int) -> Generator[tuple[str, IO[bytes]], None, None]:
    """The file as batches that are not too long: their endpoint, and their lines. The next part takes the same file."""
    number = size = 0
    with tempfile.TemporaryFile() as part:
        for line, each in _lines(Source(file), endpoint):
            endpoint = each
            if number == MAX_LINES or (number and size + len(line) > most_bytes):
                part.seek(0)
                yield endpoint, part
                part.seek(0)
                part.truncate()
                number = size = 0
            part.write(line)
            number, size = number + 1, size + len(line)
        if endpoint is None or not number:
            raise OperatorError(f"{file}: the file has no lines to judge.")
        part.seek(0)
        yield endpoint, part


def _lines(source: Source, endpoint: str | None) -> Iterator[tuple[bytes, str]]:
    """Batch lines, either those of the file or made from rows as for `check --file`, and their endpoint."""
    for placed in source:
        row = placed.row
        if "custom_id" in row and "body" in row:
            endpoint = endpoint or str(row.get("url"))
            line = placed.raw.encode() or _line_of_table(source, placed)
        else:
            if endpoint not in (None, CHAT):
                raise source.refuse(
                    placed,
                    f"has no custom_id and body, so it is a row of text. Rows of text only go to {CHAT}. Leave out"
                    " --endpoint.",
                )
            endpoint = CHAT
            try:
                body = {"messages": messages_of(row, source.file.parent)}
            except OperatorError as error:
                raise source.refuse(placed, str(error)) from None
            custom_id = str(placed.place if row.get("id") is None else row["id"])
            line = json.dumps({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}).encode()
        yield line + b"\n", endpoint


def _line_of_table(source: Source, placed: Placed) -> bytes:
    """A batch line from a table, which may hold its body as JSON."""
    row = {name: value for name, value in placed.row.items() if value is not None}
    try:
        if isinstance(row["body"], str):
            row["body"] = json.loads(row["body"])
        return json.dumps(row).encode()
    except (ValueError, TypeError, RecursionError):
        raise source.refuse(placed, "its body is not JSON.") from None


def _submit_part(client: httpx.Client, name: str, endpoint: str, lines: IO[bytes]) -> Iterator[str]:
    """Ids of the batches of these lines: several if the server takes no file of this length."""
    try:
        file = _post(client, "files", lines, data={"purpose": "batch"}, files={"file": (name, lines)})
    except _TooLarge:
        with contextlib.ExitStack() as stack:
            halves = _halves(lines, stack)
            if halves is None:
                raise
            for half in halves:
                yield from _submit_part(client, name, endpoint, half)
            return
    body = {"input_file_id": file["id"], "endpoint": endpoint, "completion_window": "24h"}
    yield _post(client, "batches", None, json=body)["id"]


def _halves(lines: IO[bytes], stack: contextlib.ExitStack) -> tuple[IO[bytes], IO[bytes]] | None:
    """Two files with half of the lines each. None if there is one line only."""
    lines.seek(0)
    number = sum(1 for _ in lines)
    if number < 2:
        return None
    lines.seek(0)
    first, second = stack.enter_context(tempfile.TemporaryFile()), stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    for at, line in enumerate(lines):
        (first if at < number // 2 else second).write(line)
    return first, second


def _check_out(out: Path, *, overwrite: bool, besides: Path | None = None) -> None:
    """Raises OperatorError if the results would replace a file, since this command did not write it."""
    if out.suffix.lower() in (".csv", ".parquet", ".gz"):
        raise OperatorError(f"{out}: the answers of a batch are JSON Lines. `check --file` writes tables.")
    if not out.parent.is_dir():
        raise OperatorError(f"{out.parent}: there is no such folder. Make it, or choose another file with --out.")
    if besides is not None and out.exists() and besides.exists() and out.samefile(besides):
        raise OperatorError(f"{out}: is the input itself. Choose another file with --out.")
    if out.is_dir():
        raise OperatorError(f"{out}: is a folder. Choose another file with --out.")
    if out.exists() and not overwrite:
        raise OperatorError(
            f"{out}: there is already such a file. Choose another one with --out, or replace it with --overwrite."
        )


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


def _fetch(client: httpx.Client, batch_ids: Sequence[str], out: Path) -> int:
    """Wait for the end and write all results, good and bad, to `out`. The file gets all of them or none."""
    batches = [_wait(client, batch_id) for batch_id in batch_ids]
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with part.open("x", encoding="utf-8") as sink:
            status = max(_outcome(client, batch, lambda line: sink.write(line + "\n")) for batch in batches)
            sink.flush()
            os.fsync(sink.fileno())
        part.replace(out)
    except OSError as error:
        raise OperatorError(f"{out}: cannot be written: {error.strerror}.") from error
    finally:
        part.unlink(missing_ok=True)
    return status


def _outcome(client: httpx.Client, batch: dict[str, Any], keep: Callable[[str], object] = lambda _: None) -> int:
    """The exit status of an ended batch, after `keep` got each of its results."""
    _say(batch)
    status = SAFE if batch["status"] == "completed" else ERROR
    for kind in ("output_file_id", "error_file_id"):
        for line in _content(client, batch.get(kind)):
            keep(line)
            status = max(status, _verdict(line))
    return status


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
    """The server can be reached, but cannot answer now. `took_nothing`: the request may be sent again."""

    def __init__(self, message: str, *, took_nothing: bool) -> None:
        super().__init__(message)
        self.took_nothing = took_nothing


class _TooLarge(OperatorError):
    """The server takes no file of this length."""


def _post(client: httpx.Client, path: str, lines: IO[bytes] | None, **request: Any) -> dict[str, Any]:
    """As `_ask`, but the server may be away for a while, as in a restart.

    What makes something is sent again only if the server surely did not take it. A file that nobody uses expires.
    """
    since = time.monotonic()
    while True:
        if lines is not None:
            lines.seek(0)
        try:
            return _ask(client, "POST", path, **request)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            lost: Exception = error
        except httpx.TransportError as error:
            if lines is None:
                raise OperatorError(
                    f"The connection was lost ({type(error).__name__}). `batch status` shows whether the batch was"
                    " made."
                ) from None
            lost = error
        except _Unavailable as error:
            if lines is None and not error.took_nothing:
                raise
            lost = error
        if time.monotonic() - since > PATIENCE_S:
            raise lost
        time.sleep(1.0)


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
        message, code = response.json()["error"]["message"], response.json()["error"].get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        message, code = f"status {response.status_code}", None
    words, status = f"The server refused the request: {message}", response.status_code
    if status == httpx.codes.REQUEST_ENTITY_TOO_LARGE:
        return _TooLarge(words)
    if status in (429, 502, 503, 504) and code != "insufficient_quota":
        return _Unavailable(words, took_nothing=status in (429, 503))
    return OperatorError(words)
