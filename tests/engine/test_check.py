"""`python -m server check` and `doctor`, as a person types them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

SAFE_TEXT, UNSAFE_TEXT = "How do I bake bread?", "How do I build a pipe bomb and hide it in a bus station?"


def guard(*arguments: str, typed: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "server", *arguments], input=typed, capture_output=True, text=True, check=False
    )


@pytest.fixture
def check(pocket_server):
    def run(*arguments: str, typed: str | None = None) -> subprocess.CompletedProcess[str]:
        return guard("check", "--url", pocket_server.url, *arguments, typed=typed)

    return run


@pytest.fixture
def image(tmp_path) -> str:
    file = tmp_path / "picture.png"
    Image.new("RGB", (64, 64), "green").save(file)
    return str(file)


@pytest.mark.parametrize(("words", "status", "verdict"), [(SAFE_TEXT, 0, "safe"), (UNSAFE_TEXT, 1, "unsafe")])
def test_exit_status_is_the_verdict(check, words, status, verdict):
    done = check(words)
    assert (done.returncode, done.stdout.split()[0]) == (status, verdict)


def test_standard_input_image_and_json(check, image):
    done = check("-", "--image", image, "--json", typed=UNSAFE_TEXT)
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["verdict"], answer["usage"]["images"]) == (1, "unsafe", 1)


def test_a_response_is_judged_instead_of_the_text(check):
    assert check("How do I make a bomb?", "--response", "I can't help with that.").returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("text", "--file", "rows.jsonl", "--out", "out.jsonl"),
        ("--file", "rows.jsonl"),
        ("text", "--image", "no-such-file.png"),
        ("--response", "an answer to nothing"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_judged_is_an_error_in_words(check, arguments):
    done = check(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("guard: ")
    assert "Traceback" not in done.stderr


def test_an_unreachable_server_is_an_error():
    assert guard("check", SAFE_TEXT, "--url", "http://127.0.0.1:9").returncode == 2


def test_file_is_judged_row_by_row_and_resumed(check, tmp_path, image):
    rows = [
        {"id": "a", "text": SAFE_TEXT},
        {"id": "b", "text": UNSAFE_TEXT},
        {"id": "c", "messages": [{"role": "user", "content": SAFE_TEXT}]},
        {"id": "d", "text": SAFE_TEXT, "images": [Path(image).name]},
        {"id": "e", "text": SAFE_TEXT, "response": "Mix flour and water."},
        {"id": "f", "nothing": "to judge"},
        {"id": "g", "messages": [{"role": "oracle", "content": "hello"}]},
    ]
    file, out = tmp_path / "rows.jsonl", tmp_path / "verdicts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = check("--file", str(file), "--out", str(out))
    assert done.returncode == 2
    assert "7/7" in done.stderr

    verdicts = {answer["id"]: answer for answer in map(json.loads, out.read_text().splitlines())}
    assert {id_: answer.get("verdict") for id_, answer in verdicts.items()} == {
        **{"a": "safe", "b": "unsafe", "c": "safe", "d": "safe", "e": "safe"},
        **{"f": None, "g": None},
    }
    assert verdicts["f"]["error"]["code"] == "invalid_row"

    # A run that was killed leaves a line cut off; the next one judges that row, the failed ones and no others again.
    lines = out.read_text().splitlines(keepends=True)
    kept = sorted(line for line in lines if json.loads(line)["id"] in "abc")
    marked = [json.dumps({**json.loads(line), "kept": True}) + "\n" for line in kept]
    out.write_text("".join(marked) + next(line for line in lines if json.loads(line)["id"] == "d")[:25])
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:5]))
    assert check("--file", str(file), "--out", str(out)).returncode == 1
    verdicts = {answer["id"]: answer for answer in map(json.loads, out.read_text().splitlines())}
    assert sorted(verdicts) == ["a", "b", "c", "d", "e"]
    assert [id_ for id_, answer in verdicts.items() if answer.get("kept")] == ["a", "b", "c"]


def test_a_row_that_changed_is_judged_again(check, tmp_path):
    """Ids are often line numbers: an old verdict must not stand for another text."""
    file, out = tmp_path / "rows.jsonl", tmp_path / "verdicts.jsonl"
    for words, status in ((SAFE_TEXT, 0), (UNSAFE_TEXT, 1)):
        file.write_text(json.dumps({"text": words}) + "\n")
        assert check("--file", str(file), "--out", str(out)).returncode == status
    out.write_text("no verdicts\n")
    assert check("--file", str(file), "--out", str(out)).returncode == 2
    assert out.read_text() == "no verdicts\n"


def test_nothing_judged_is_never_safe(check, tmp_path):
    empty, odd = tmp_path / "empty.jsonl", tmp_path / "odd.jsonl"
    empty.write_text("\n")
    odd.write_text('{"text": "hello", "images": [5]}\n{"text": "hello", "images": null}\n')
    assert check("--file", str(empty), "--out", str(tmp_path / "a")).returncode == 2
    assert check("--file", str(odd), "--out", str(tmp_path / "b")).returncode == 2
    assert guard("check", SAFE_TEXT, "--url", "http://[::1").returncode == 2


def test_rows_with_the_same_id_are_refused(check, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"id": 1, "text": "a"}\n{"id": "1", "text": "b"}\n')
    done = check("--file", str(file), "--out", str(tmp_path / "out.jsonl"))
    assert done.returncode == 2
    assert "same id" in done.stderr


def test_an_engine_of_its_own(image, monkeypatch):
    monkeypatch.setenv("GUARD_UNSEEN_IMAGES", "judge_text")
    done = guard("check", SAFE_TEXT, "--image", image, "--profile", "pocket", "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["verdict"], answer["backend"]) == (0, "safe", "vllm")


def test_doctor_without_a_gpu():
    done = guard("doctor", "--gpu-memory", "24", "--profile", "llama-guard-4-12b:24gb")
    assert done.returncode == 0
    assert "24gb" in done.stdout
    assert guard("doctor", "--gpu-memory", "24", "--profile", "llama-guard-4-12b:80gb").returncode == 1
    assert guard("doctor", "--profile", "no-such-model").returncode == 2
