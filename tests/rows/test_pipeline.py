"""A run that is stopped anywhere goes on where it was, and touches no file that is not its own."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.errors import OperatorError
from server.rows.journal import Answer
from server.rows.pipeline import Run, work_through
from server.rows.reading import Source
from tests.rows.test_formats import made

ROWS = [{"id": str(number), "text": f"{'a bomb' if number % 7 == 3 else 'bread'} {number}"} for number in range(60)]


def verdict_on(messages: Sequence[Any]) -> Answer:
    text = messages[0]["content"][-1]["text"]
    unsafe = "bomb" in text
    return {"verdict": "unsafe" if unsafe else "safe", "p_unsafe": 0.9 if unsafe else 0.1, "threshold": 0.5} | {
        "categories": ["S9"] if unsafe else [],
        "model": "made-up",
    }


class Asked:
    """Answers after `wait`, and stops the run at question `stop_at`."""

    def __init__(self, stop_at: int | None = None, failing: Callable[[str], bool] = lambda _: False) -> None:
        self.texts: list[str] = []
        self._stop_at = stop_at
        self._failing = failing

    async def __call__(self, messages: Sequence[Any]) -> Answer:
        text = messages[0]["content"][-1]["text"]
        await asyncio.sleep(0.001 * (hash(text) % 3))
        if self._stop_at is not None and len(self.texts) >= self._stop_at:
            raise OperatorError("stopped")
        self.texts.append(text)
        if self._failing(text):
            return {"error": {"message": "Too long.", "code": "context_length_exceeded"}}
        return verdict_on(messages)


def run_of(tmp_path: Path, name: str = "rows.jsonl", out: str = "out.jsonl", **options: Any) -> Run:
    file = tmp_path / name
    if not file.exists():
        made(file, ROWS)
    return Run(file, tmp_path / out, **options)


def verdicts(out: Path) -> list[tuple[str, str]]:
    return [(str(placed.row["id"]), placed.row["verdict"]) for placed in Source(out)]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


EXPECTED = [(row["id"], "unsafe" if "bomb" in row["text"] else "safe") for row in ROWS]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet", "rows.jsonl.gz", "rows.csv.gz"])
@pytest.mark.parametrize("out", ["out.jsonl", "out.csv", "out.parquet", "out.jsonl.gz"])
async def test_rows_keep_their_order_and_their_columns(tmp_path: Path, name: str, out: str) -> None:
    run = run_of(tmp_path, name, out)
    summary = await work_through(run, Asked())
    assert summary.counts == {"safe": 51, "unsafe": 9}
    assert verdicts(run.out) == EXPECTED
    rows = [placed.row for placed in Source(run.out)]
    assert [row["text"] for row in rows] == [row["text"] for row in ROWS]
    ours = ["verdict", "flagged", "categories", "p_unsafe", "threshold", "model", "error", "error_code"]
    assert list(rows[0])[:10] == ["id", "text", *ours]
    assert names(tmp_path) == sorted([name, out, f"{out}.journal"]), "nothing else is left"
    assert len((tmp_path / f"{out}.journal").read_bytes()) < 500, "the answers are not kept twice"


@pytest.mark.parametrize("stop_at", [0, 1, 17, 59])
async def test_a_run_that_was_stopped_goes_on(tmp_path: Path, stop_at: int) -> None:
    run, first, second = run_of(tmp_path), Asked(stop_at), Asked()
    with pytest.raises(OperatorError, match="stopped"):
        await work_through(run, first)
    assert not run.out.exists()
    await work_through(run, second)
    assert sorted(first.texts + second.texts) == sorted(row["text"] for row in ROWS), "each row was asked about once"
    assert verdicts(run.out) == EXPECTED


@given(cut=st.integers(0, 10_000))
def test_a_journal_cut_anywhere_costs_only_its_last_row(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    tmp_path = tmp_path_factory.mktemp("cut")
    run, journal = run_of(tmp_path), tmp_path / "out.jsonl.journal"
    with pytest.raises(OperatorError):
        asyncio.run(work_through(run, Asked(40)))
    whole = journal.read_bytes()
    head = whole.index(b"\n") + 1
    kept = whole[: head + cut % (len(whole) - head + 1)]
    journal.write_bytes(kept)
    again = Asked()
    asyncio.run(work_through(run, again))
    assert len(again.texts) == 60 - (kept.count(b"\n") - 1)
    assert verdicts(run.out) == EXPECTED


async def test_errors_are_rows_too_and_asked_about_again(tmp_path: Path) -> None:
    run, first, second = run_of(tmp_path), Asked(failing=lambda text: text.endswith("5")), Asked()
    summary = await work_through(run, first)
    assert summary.counts == {"safe": 46, "unsafe": 8, "errors": 6}
    rows = [placed.row for placed in Source(run.out)]
    assert (rows[5]["verdict"], rows[5]["flagged"], rows[5]["error_code"]) == (None, None, "context_length_exceeded")
    summary = await work_through(run, second)
    assert sorted(second.texts) == sorted(row["text"] for row in ROWS if row["text"].endswith("5"))
    assert (summary.answered, summary.rows) == (6, 60)
    assert verdicts(run.out) == EXPECTED
    third = Asked()
    summary = await work_through(run, third)
    assert third.texts == []
    assert (summary.answered, summary.counts) == (0, {"safe": 51, "unsafe": 9})


@pytest.mark.parametrize("change", ["input", "policy", "column", "model"])
async def test_a_journal_of_another_run_is_refused(tmp_path: Path, change: str) -> None:
    run = run_of(tmp_path)
    with pytest.raises(OperatorError):
        await work_through(run, Asked(5))
    changed = {
        "input": run,
        "policy": run_of(tmp_path, policy={"threshold": 0.9}),
        "column": run_of(tmp_path, text="id"),
        "model": run_of(tmp_path, model="another"),
    }[change]
    if change == "input":
        made(run.file, [*ROWS[:-1], {"id": "59", "text": "changed"}])
    asked = Asked()
    with pytest.raises(OperatorError, match=f"another {change}"):
        await work_through(changed, asked)
    assert asked.texts == []
    await work_through(replace(changed, overwrite=True), asked)
    assert len(asked.texts) == 60


async def test_no_file_is_touched_that_is_not_its_own(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    content = run.file.read_bytes()
    os.link(run.file, tmp_path / "hard.jsonl")
    (tmp_path / "soft.jsonl").symlink_to(run.file)
    (tmp_path / "other.jsonl").write_text("mine\n")
    (tmp_path / "busy.jsonl.journal").write_text("mine\n")
    for out in ("rows.jsonl", "hard.jsonl", "soft.jsonl", "other.jsonl", "busy.jsonl", "none/out.jsonl", "out.txt"):
        asked = Asked()
        with pytest.raises(OperatorError):
            await work_through(run_of(tmp_path, out=out), asked)
        assert asked.texts == []
    for out in ("rows.jsonl", "hard.jsonl", "soft.jsonl"):
        with pytest.raises(OperatorError, match="input itself"):
            await work_through(run_of(tmp_path, out=out, overwrite=True), Asked())
    assert run.file.read_bytes() == content
    assert (tmp_path / "other.jsonl").read_text() == (tmp_path / "busy.jsonl.journal").read_text() == "mine\n"


async def test_an_output_that_somebody_changed_is_not_replaced(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    await work_through(run, Asked(failing=lambda text: text.endswith("5")))
    run.out.write_text("mine\n")
    with pytest.raises(OperatorError, match="not the output of an earlier run"):
        await work_through(run, Asked())
    assert run.out.read_text() == "mine\n"


async def test_two_commands_do_not_share_a_journal(tmp_path: Path) -> None:
    run = run_of(tmp_path)

    class Nested(Asked):
        async def __call__(self, messages: Sequence[Any]) -> Answer:
            if not self.texts:
                with pytest.raises(OperatorError, match="another command is at work"):
                    await work_through(run, Asked())
            return await super().__call__(messages)

    await work_through(run, Nested())
    assert verdicts(run.out) == EXPECTED


async def test_names_that_clash_get_a_prefix(tmp_path: Path) -> None:
    made(tmp_path / "rows.csv", [{"id": "1", "text": "bread", "verdict": "old"}])
    run = Run(tmp_path / "rows.csv", tmp_path / "out.csv")
    await work_through(run, Asked())
    (row,) = (placed.row for placed in Source(run.out))
    assert (row["verdict"], row["guard_verdict"], row["guard_flagged"]) == ("old", "safe", "false")


async def test_a_column_of_another_name(tmp_path: Path) -> None:
    made(tmp_path / "rows.csv", [{"nr": "1", "comment": "a bomb"}])
    with pytest.raises(OperatorError, match=r"has no column 'text' \(its columns: nr, comment\)"):
        await work_through(Run(tmp_path / "rows.csv", tmp_path / "out.csv"), Asked())
    summary = await work_through(Run(tmp_path / "rows.csv", tmp_path / "out.csv", text="comment"), Asked())
    assert summary.counts == {"unsafe": 1}


async def test_an_empty_file_is_no_success(tmp_path: Path) -> None:
    for name, content in (("a.jsonl", "\n"), ("a.csv", "id,text\n")):
        (tmp_path / name).write_text(content)
        with pytest.raises(OperatorError, match="no rows to judge"):
            await work_through(Run(tmp_path / name, tmp_path / f"out-{name}"), Asked())
        assert not (tmp_path / f"out-{name}").exists()


def test_a_large_parquet_file_killed_at_many_points(tmp_path: Path) -> None:
    """The command as people run it, against a server that answers slowly enough to be killed in between."""
    file, whole, killed = tmp_path / "rows.parquet", tmp_path / "whole.parquet", tmp_path / "killed.parquet"
    rows = [{"id": number, "text": f"{'a bomb' if number % 5 == 1 else 'bread'} {number}"} for number in range(2500)]
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=300)
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.fake_server", "0.001"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        url = next(word for word in server.stdout.readline().split() if word.startswith("http")).removesuffix(
            "/v1/moderations"
        )
        command = [sys.executable, "-m", "server", "check", "--file", str(file), "--url", url, "--out"]
        done = subprocess.run([*command, str(whole)], capture_output=True, text=True, check=False)
        assert done.returncode == 1, done.stderr
        assert "2500 rows: 2000 safe, 500 unsafe, 0 errors" in done.stderr
        journal, kills = tmp_path / "killed.parquet.journal", 0
        for answered in (0, 1, 300, 301, 900, 1500, 2000, 2499):
            process = subprocess.Popen([*command, str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > answered):
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            kills += process.wait() == -signal.SIGKILL
        assert kills >= 6
        assert subprocess.run([*command, str(killed)], capture_output=True, check=False).returncode == 1
    finally:
        server.kill()
        server.wait()
    ours, theirs = pq.read_table(killed), pq.read_table(whole)
    assert ours.equals(theirs)
    assert ours.column("id").to_pylist() == list(range(2500))
    assert names(tmp_path) == [
        "killed.parquet",
        "killed.parquet.journal",
        "rows.parquet",
        "whole.parquet",
        "whole.parquet.journal",
    ]


@pytest.mark.parametrize("at", ["written", "named", "receipt"])
async def test_a_run_killed_while_the_output_appears_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """After a run with errors there is an output of ours already, which the next one replaces."""
    run = run_of(tmp_path)
    await work_through(run, Asked(failing=lambda text: text.endswith("5")))

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if at == "written":
            patch.setattr(Path, "replace", kill)  # the journal knows the new output, which has no name yet
        elif at == "named":
            patch.setattr("server.rows.journal._sync_folder", kill)
        else:
            patch.setattr("server.rows.journal.Journal.finish", kill)
        with pytest.raises(Killed):
            await work_through(run, Asked())
    asked = Asked()
    await work_through(run, asked)
    assert asked.texts == []
    assert verdicts(run.out) == EXPECTED
    assert names(tmp_path) == ["out.jsonl", "out.jsonl.journal", "rows.jsonl"]


async def test_a_run_that_got_no_answer_is_in_nobodys_way(tmp_path: Path) -> None:
    """Such as one whose policy the server refused."""
    with pytest.raises(OperatorError, match="stopped"):
        await work_through(run_of(tmp_path, policy={"threshold": 5}), Asked(0))
    await work_through(run_of(tmp_path, policy={"threshold": 0.5}), Asked())
    assert verdicts(tmp_path / "out.jsonl") == EXPECTED


async def test_an_output_that_was_moved_away_is_made_anew(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    await work_through(run, Asked())
    run.out.rename(tmp_path / "kept.jsonl")
    made(run.file, [*ROWS[:-1], {"id": "59", "text": "changed"}])
    asked = Asked()
    await work_through(run, asked)
    assert len(asked.texts) == 60


async def test_overwrite_forgets_what_is_complete_and_keeps_what_is_not(tmp_path: Path) -> None:
    run = run_of(tmp_path, overwrite=True)
    run.out.write_text("somebody's\n")
    first, second, third = Asked(17), Asked(), Asked()
    with pytest.raises(OperatorError, match="stopped"):
        await work_through(run, first)
    await work_through(run, second)
    assert len(second.texts) == 60 - 17
    await work_through(run, third)
    assert len(third.texts) == 60


@pytest.mark.parametrize("damage", [b"\0\0\0\n", b"[]\n", b'{"row": 1}\n', b'{"x": 1}\n', b"{\n", b'"row"\n'])
async def test_a_damaged_journal_costs_what_comes_after_the_damage(tmp_path: Path, damage: bytes) -> None:
    run, journal, again = run_of(tmp_path), tmp_path / "out.jsonl.journal", Asked()
    with pytest.raises(OperatorError):
        await work_through(run, Asked(40))
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:11], damage, *lines[11:]]))
    await work_through(run, again)
    assert len(again.texts) == 50
    assert verdicts(run.out) == EXPECTED


@pytest.mark.parametrize("answer", [{}, {"verdict": "fine"}, {"verdict": None}, {"verdict": "safe", "error": {}}])
async def test_what_is_no_verdict_in_the_journal_is_asked_about_again(tmp_path: Path, answer: Answer) -> None:
    run, journal, again = run_of(tmp_path), tmp_path / "out.jsonl.journal", Asked()
    with pytest.raises(OperatorError):
        await work_through(run, Asked(40))
    count = journal.read_bytes().count(b"\n") - 1
    row = json.loads(journal.read_bytes().splitlines()[1])["row"]
    with journal.open("a") as stream:
        stream.write(json.dumps({"row": row, "answer": answer}) + "\n")
    await work_through(run, again)
    assert len(again.texts) == 60 - count + 1
    assert verdicts(run.out) == EXPECTED


async def test_an_input_that_changes_under_the_run_is_told(tmp_path: Path) -> None:
    run = run_of(tmp_path)

    class Changing(Asked):
        async def __call__(self, messages: Sequence[Any]) -> Answer:
            if len(self.texts) == 20:
                made(run.file, ROWS[::-1])
            return await super().__call__(messages)

    with pytest.raises(OperatorError, match="was changed during the run"):
        await work_through(run, Changing())
    assert not run.out.exists()


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    run, again = run_of(tmp_path), Asked()
    script = (
        "import asyncio, resource\n"
        "from pathlib import Path\n"
        "from tests.rows.test_pipeline import Asked, Run, work_through\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        f"asyncio.run(work_through(Run(Path({str(run.file)!r}), Path({str(run.out)!r})), Asked()))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "cannot be written: File too large. Make room and run the same command again" in done.stderr
    assert not run.out.exists()
    asyncio.run(work_through(run, again))
    assert 0 < len(again.texts) < 60
    assert verdicts(run.out) == EXPECTED


ODD = [
    rb'{"text": "half \ud800"}',
    rb'{"text": "a", "images": ["\u0000"]}',
    rb'{"text": "a", "images": ["\ud800"]}',
    rb'{"messages": {"role": NaN}}',
    rb'{"messages": "[1"}',
    b'{"messages": "' + b"[" * 100_000 + b'"}',
    rb'{"text": "a", "images": {"a": 1}}',
    rb'{"text": "a", "images": 5}',
    rb'{"text": "a", "images": ["."]}',
]


@pytest.mark.parametrize("out", ["out.jsonl", "out.csv", "out.parquet"])
async def test_a_row_that_cannot_be_asked_about_costs_only_itself(tmp_path: Path, out: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "bread"}\n' + b"\n".join(ODD) + b'\n{"text": "a bomb"}\n')
    run = Run(tmp_path / "rows.jsonl", tmp_path / out)
    summary = await work_through(run, Asked())
    assert summary.counts == {"safe": 2, "unsafe": 1, "errors": len(ODD) - 1}
    rows = [placed.row for placed in Source(run.out)]
    assert [rows[0]["verdict"], rows[-1]["verdict"]] == ["safe", "unsafe"]
    assert {row["error_code"] for row in rows[2:-1]} == {"invalid_row"}


async def test_an_empty_field_of_a_table_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,images,response,messages\nbread,,,\na bomb,,,\n")
    summary = await work_through(Run(tmp_path / "rows.csv", tmp_path / "out.csv"), Asked())
    assert summary.counts == {"safe": 1, "unsafe": 1}


async def test_texts_in_bytes_are_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([b"a bomb", b"\xff"])}), tmp_path / "rows.parquet")
    run = Run(tmp_path / "rows.parquet", tmp_path / "out.parquet")
    assert (await work_through(run, Asked())).counts == {"unsafe": 1, "errors": 1}


async def test_who_names_a_column_gets_that_one(tmp_path: Path) -> None:
    row = {"messages": "7 of them", "text": "bread", "comment": "a bomb"}
    made(tmp_path / "rows.csv", [row])
    summary = await work_through(Run(tmp_path / "rows.csv", tmp_path / "out.csv", text="comment"), Asked())
    assert summary.counts == {"unsafe": 1}


async def test_what_is_wrong_at_the_end_of_a_file_is_told_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n' * 100 + "{\n")
    asked = Asked()
    with pytest.raises(OperatorError, match="line 101 is not JSON"):
        await work_through(run_of(tmp_path), asked)
    assert asked.texts == []
    assert names(tmp_path) == ["rows.jsonl"]


MEASURED = """
import asyncio, re
from pathlib import Path
from server.rows.pipeline import Run, work_through

async def ask(_):
    return {"verdict": "safe", "categories": [], "p_unsafe": 0.1}

asyncio.run(work_through(Run(Path("%s"), Path("%s")), ask))
# Not getrusage, whose maximum includes that of the process which started this one.
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.parametrize("out", ["out.csv", "out.parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, out: str) -> None:
    """Of Parquet in one row group, which is the worst case: its columns are as long as the file."""
    peaks = []
    for number in (20_000, 200_000):
        file = tmp_path / f"{number}.parquet"
        texts = [f"{row} " + "bread " * 40 for row in range(number)]
        pq.write_table(pa.table({"text": texts}), file, row_group_size=number, use_dictionary=False, compression="none")
        script = MEASURED % (file, tmp_path / f"{number}.{out}")
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) * 1024)
    assert file.stat().st_size > 45 * 2**20
    assert peaks[1] - peaks[0] < 24 * 2**20, "8 bytes a row, a row group of the output, and what the allocator keeps"
