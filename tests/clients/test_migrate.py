"""docs/migrate.md word for word: every snippet is run, and prints what it says it prints."""

import subprocess
from pathlib import Path

import httpx
import pytest
import yaml

from tests.clients.conftest import HERE, SAFE_TEXT, SUFFIXES, UNSAFE_TEXT, Run
from tests.clients.snippets import PAGE, Snippet, snippets
from tests.conftest import RunningServer

RUN = [snippet for snippet in snippets() if not snippet.use.startswith("file=")]
FILES = {snippet.use.removeprefix("file=") for snippet in snippets() if snippet not in RUN}

clients = pytest.mark.clients


def test_no_snippet_is_left_out() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert 2 * len(snippets()) == page.count("```")
    assert {snippet.use for snippet in RUN} == {*SUFFIXES, "shell"} - {"nemo"}
    assert all(snippet.promised for snippet in RUN)
    programs = "".join(file.read_text(encoding="utf-8") for file in (*HERE.glob("*.py"), *HERE.glob("*/*.py")))
    assert all(f'"{Path(file).parts[0]}"' in programs for file in FILES)


@clients
@pytest.mark.parametrize("snippet", RUN, ids=lambda snippet: f"line {snippet.line}, {snippet.use}")
def test_a_snippet(run: Run, server: RunningServer, key: str, tmp_path: Path, snippet: Snippet) -> None:
    text = snippet.at(server.url, key)
    if snippet.use == "shell":
        said = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True).stdout
    elif snippet.use == "node":
        # Below the node_modules that it imports from.
        said = run("node", "--input-type=module", "--eval", text, cwd=HERE / "node")
    else:
        (tmp_path / "snippet.py").write_text(text, encoding="utf-8")
        said = run(snippet.use, tmp_path / "snippet.py", stderr=subprocess.DEVNULL)
    assert said.splitlines() == snippet.promised


@clients
def test_ogx_asks_where_its_configuration_says(files: Path) -> None:
    """What OGX does with it: the text alone, the headers as they are, and a verdict that is read by two keys."""
    (provider,) = yaml.safe_load((files / "ogx.yaml").read_text())["providers"]["responses"]
    url, headers = provider["config"]["moderation_endpoint"], provider["config"]["moderation_headers"]
    for words, flagged in ((SAFE_TEXT, False), (UNSAFE_TEXT, True)):
        response = httpx.post(url, json={"input": words}, headers=headers)
        (result,) = response.raise_for_status().json()["results"]
        assert result["flagged"] is flagged
        assert any(result["categories"].values()) is flagged


@clients
def test_librechat_asks_where_its_environment_says(files: Path) -> None:
    """What LibreChat does with it: one text or several in `input`, and the key as a bearer."""
    lines = (files / "librechat.env").read_text().splitlines()
    variables = dict(line.split("=", 1) for line in lines)
    for words, flagged in ((SAFE_TEXT, False), (UNSAFE_TEXT, True), ([SAFE_TEXT, UNSAFE_TEXT], True)):
        response = httpx.post(
            variables["OPENAI_MODERATION_REVERSE_PROXY"],
            json={"input": words},
            headers={"Authorization": f"Bearer {variables['OPENAI_MODERATION_API_KEY']}"},
        )
        assert any(result["flagged"] for result in response.raise_for_status().json()["results"]) is flagged
