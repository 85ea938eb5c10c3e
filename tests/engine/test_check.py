"""`llama-guard-server check` and `doctor`, as a person types them."""

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
        ("text", "--url", "127.0.0.1:8000"),
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
    assert "7 rows: 4 safe, 1 unsafe, 2 errors" in done.stderr

    verdicts = {answer["id"]: answer for answer in map(json.loads, out.read_text().splitlines())}
    assert {id_: answer["verdict"] for id_, answer in verdicts.items()} == {
        **{"a": "safe", "b": "unsafe", "c": "safe", "d": "safe", "e": "safe"},
        **{"f": None, "g": None},
    }
    assert list(verdicts) == list("abcdefg")
    assert verdicts["f"]["error_code"] == "invalid_row"
    assert verdicts["b"]["guard"]["usage"]["prompt_tokens"] > 0

    done = check("--file", str(file), "--out", str(out))
    assert done.returncode == 2
    assert "7 rows, 5 of them answered before" in done.stderr
    # Another policy is another run.
    assert check("--file", str(file), "--out", str(out), "--threshold", "1").returncode == 2
    strict = tmp_path / "strict.jsonl"
    file.write_text(json.dumps(rows[0]) + "\n")
    assert check("--file", str(file), "--out", str(strict), "--threshold", "0.000001").returncode == 1
    assert json.loads(strict.read_text())["threshold"] == 0.000001
    excluded, policy = tmp_path / "excluded.jsonl", tmp_path / "policy.json"
    assert check("--file", str(file), "--out", str(excluded), "--exclude", "S1,S2").returncode == 0
    assert not {"S1", "S2"} & set(json.loads(excluded.read_text())["guard"]["category_scores"])
    policy.write_text('{"threshold": 0.000001, "excluded_categories": ["S5"]}')
    chosen = tmp_path / "chosen.jsonl"
    done = check("--file", str(file), "--out", str(chosen), "--policy", str(policy), "--threshold", "0.9")
    assert done.returncode == 0
    assert json.loads(chosen.read_text())["threshold"] == 0.9
    # What every row would be refused for ends the run at once.
    for flags in (("--threshold", "5"), ("--exclude", "S99"), ("--policy", str(file))):
        done = check("--file", str(file), "--out", str(tmp_path / "none.jsonl"), *flags)
        assert done.returncode == 2
        assert "refuses every row with status 400" in done.stderr


def test_nothing_judged_is_never_safe(check, tmp_path):
    empty, odd = tmp_path / "empty.jsonl", tmp_path / "odd.jsonl"
    empty.write_text("\n")
    odd.write_text('{"text": "hello", "images": [5]}\n{"text": "hello", "images": null}\n')
    assert check("--file", str(empty), "--out", str(tmp_path / "a.jsonl")).returncode == 2
    assert check("--file", str(odd), "--out", str(tmp_path / "b.jsonl")).returncode == 2
    assert guard("check", SAFE_TEXT, "--url", "http://[::1").returncode == 2


def test_rows_with_the_same_id_stay_apart(check, tmp_path):
    file, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    file.write_text(json.dumps({"id": 1, "text": SAFE_TEXT}) + "\n" + json.dumps({"id": 1, "text": UNSAFE_TEXT}) + "\n")
    assert check("--file", str(file), "--out", str(out)).returncode == 1
    assert [json.loads(line)["verdict"] for line in out.read_text().splitlines()] == ["safe", "unsafe"]


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
