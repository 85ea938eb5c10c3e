"""`llama-guard-server batch` against a server on the fake backend."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.__main__ import main
from tests.api.conftest import LiveServer, StartServer
from tests.fakes import FakeBackend, always

ROWS = [{"id": "a", "text": "bread"}, {"messages": [{"role": "user", "content": "bread"}]}]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write(tmp_path / "rows.jsonl", *ROWS)


def write(file: Path, *rows: object) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def guard(live: LiveServer, *arguments: object) -> int:
    return main(["batch", *map(str, arguments), "--url", live.url])


@pytest.mark.parametrize(("text", "status"), [("bread", 0), ("a bomb", 1), ("", 2)])
def test_exit_status_is_the_worst_of_the_lines(
    live: LiveServer,
    tmp_path: Path,
    rows: Path,
    text: str,
    status: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(rows, *ROWS, {"id": "c", "text": text})
    out = tmp_path / "answers.jsonl"
    assert guard(live, "submit", rows, "--out", out) == status
    answers = {answer["custom_id"]: answer for answer in map(json.loads, out.read_text().splitlines())}
    assert set(answers) == {"a", "2", "c"}
    assert answers["a"]["response"]["body"]["choices"][0]["message"]["content"] == "safe"
    console = capsys.readouterr()
    assert "3 lines" in console.out
    assert "3/3" in console.err


def test_full_lines_go_where_they_say(live: LiveServer, tmp_path: Path) -> None:
    line = {"custom_id": "x", "method": "POST", "url": "/v1/moderations", "body": {"input": "a bomb"}}
    out = tmp_path / "answers.jsonl"
    assert guard(live, "submit", write(tmp_path / "lines.jsonl", line), "--out", out) == 1
    assert json.loads(out.read_text())["response"]["body"]["results"][0]["flagged"] is True


def test_submit_status_and_fetch(
    live: LiveServer,
    tmp_path: Path,
    rows: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert guard(live, "submit", rows) == 0
    batch_id = capsys.readouterr().out.strip()
    out = tmp_path / "answers.jsonl"
    assert guard(live, "fetch", batch_id, "--out", out) == 0
    assert len(out.read_text().splitlines()) == 2
    assert guard(live, "status", batch_id) == 0
    assert guard(live, "status") == 0
    assert capsys.readouterr().out.count(f"{batch_id} completed: 2 lines, 2 completed, 0 failed") == 3
    assert guard(live, "submit", rows, "--wait") == 0


def test_what_is_no_verdict_is_an_error(live: LiveServer, tmp_path: Path, rows: Path, backend: FakeBackend) -> None:
    backend.script = always("Sure!")
    assert guard(live, "submit", rows, "--out", tmp_path / "answers.jsonl") == 2
    assert guard(live, "submit", rows, "--wait") == 2


def test_faults_of_the_file_are_told(
    live: LiveServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert guard(live, "submit", write(tmp_path / "r.jsonl", ROWS[0], ROWS[0]), "--wait") == 2
    assert "line 2: duplicate_custom_id" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "zebra\n", "[1]\n", '{"nothing": 1}\n'])
def test_rows_that_cannot_be_lines(
    live: LiveServer,
    tmp_path: Path,
    content: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(content)
    assert guard(live, "submit", file) == 2
    assert capsys.readouterr().err.startswith("guard: ")


def test_what_is_not_there(live: LiveServer, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert guard(live, "submit", tmp_path / "none.jsonl") == 2
    assert guard(live, "status", "batch_none") == 2
    assert guard(live, "fetch", "batch_none", "--out", tmp_path / "x") == 2
    assert main(["batch", "submit", str(rows), "--url", "http://127.0.0.1:9"]) == 2
    assert main(["batch", "status", "--url", "http://[::1"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_file_that_is_too_long_becomes_several_batches(
    live: LiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = ["bread" if number != 7 else "a bomb" for number in range(10)]
    file, out = (
        write(tmp_path / "rows.jsonl", *({"id": str(n), "text": t} for n, t in enumerate(texts))),
        tmp_path / "out",
    )
    assert guard(live, "submit", file, "--part-bytes", 500, "--out", out) == 1
    ids = [line for line in capsys.readouterr().out.splitlines() if line.startswith("batch_") and " " not in line]
    assert len(ids) > 2
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [answer["custom_id"] for answer in answers] == [str(number) for number in range(10)]
    assert guard(live, "submit", file, "--wait") == 1


def test_a_batch_is_cancelled(live: LiveServer, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert guard(live, "submit", rows, "--wait") == 0
    batch_id = capsys.readouterr().out.splitlines()[0]
    assert guard(live, "cancel", batch_id) == 2
    assert "completed" in capsys.readouterr().err


def test_no_file_is_replaced(live: LiveServer, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = rows.read_bytes()
    other = tmp_path / "other.jsonl"
    other.write_text("mine")
    for out, said in (
        (rows, "is the input itself"),
        (other, "already such a file"),
        (tmp_path / "none/x", "no such folder"),
    ):
        assert guard(live, "submit", rows, "--out", out) == 2
        assert said in capsys.readouterr().err
    assert guard(live, "fetch", "batch_x", "--out", other) == 2
    assert (rows.read_bytes(), other.read_text()) == (content, "mine")
    assert guard(live, "status") == 0
    assert capsys.readouterr().out == "", "no batch was made"


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "localhost", "ftp://localhost", "http://", ""])
def test_what_is_no_url_is_told(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["batch", "status", "--url", url]) == 2
    assert "is not a URL such as http://127.0.0.1:8000" in capsys.readouterr().err


def test_an_output_is_replaced_when_asked(live: LiveServer, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "other.jsonl"
    out.write_text("mine")
    assert guard(live, "submit", rows, "--out", out, "--overwrite") == 0
    assert len(out.read_text().splitlines()) == 2
    assert guard(live, "submit", rows, "--out", rows, "--overwrite") == 2


def test_a_server_that_takes_only_short_files_gets_shorter_ones(
    start_server: StartServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    live = start_server(max_file_bytes=1024)
    file, out = write(tmp_path / "rows.jsonl", *({"text": f"bread {n}"} for n in range(40))), tmp_path / "out.jsonl"
    assert guard(live, "submit", file, "--out", out) == 0
    answers = [json.loads(line)["custom_id"] for line in out.read_text().splitlines()]
    assert answers == [str(number) for number in range(1, 41)]
    capsys.readouterr()
    assert guard(live, "submit", write(tmp_path / "long.jsonl", {"text": "a" * 2000}), "--out", tmp_path / "o") == 2
    assert "larger than 1024 bytes" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["a.csv", "a.parquet", "a.jsonl.gz"])
def test_answers_are_json_lines(live: LiveServer, rows: Path, tmp_path: Path, out: str) -> None:
    assert guard(live, "submit", rows, "--out", tmp_path / out) == 2
    assert live.backend.cases == []


def test_tables_become_lines_too(live: LiveServer, tmp_path: Path) -> None:
    table, lines = tmp_path / "rows.csv", tmp_path / "lines.csv"
    table.write_text("id,text\na,bread\nb,a bomb\n")
    lines.write_text('custom_id,method,url,body\nx,POST,/v1/moderations,"{""input"": ""a bomb""}"\n')
    assert guard(live, "submit", table, "--wait") == 1
    assert guard(live, "submit", lines, "--wait") == 1
    lines.write_text("custom_id,method,url,body\nx,POST,/v1/moderations,{\n")
    assert guard(live, "submit", lines, "--wait") == 2


def test_a_restart_between_two_batches_loses_nothing(
    live: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second upload finds nobody, then a server that is not ready."""
    file, out = write(tmp_path / "rows.jsonl", *({"text": f"bread {n}"} for n in range(10))), tmp_path / "out.jsonl"
    uploads, send = [], httpx.Client.send

    def flaky(client: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        if request.method == "POST":
            uploads.append(request.url.path)
            if len(uploads) in (3, 6):
                raise httpx.ConnectError("refused")
            if len(uploads) in (4, 7):
                return httpx.Response(503, json={"error": {"message": "not ready"}}, request=request)
        return send(client, request, **options)

    monkeypatch.setattr(httpx.Client, "send", flaky)
    monkeypatch.setattr("time.sleep", lambda _: None)
    assert guard(live, "submit", file, "--part-bytes", 500, "--out", out) == 0
    assert len(out.read_text().splitlines()) == 10
    assert len(uploads) > 7
    uploads.clear()
    monkeypatch.setattr("server.commands.batch.PATIENCE_S", -1.0)
    assert guard(live, "submit", file, "--part-bytes", 500) == 2
    assert "1 batches were made before, and go on" in capsys.readouterr().err


def test_a_batch_that_may_have_been_made_is_not_made_twice(
    live: LiveServer, rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    send = httpx.Client.send

    def flaky(client: httpx.Client, request: httpx.Request, **options: Any) -> httpx.Response:
        response = send(client, request, **options)
        if request.method == "POST" and request.url.path.endswith("/batches"):
            raise httpx.ReadError("reset")
        return response

    with monkeypatch.context() as patch:
        patch.setattr(httpx.Client, "send", flaky)
        assert guard(live, "submit", rows) == 2
    assert "`batch status` shows whether the batch was made" in capsys.readouterr().err
    assert guard(live, "status") == 0
    assert capsys.readouterr().out.count("batch_") == 1
