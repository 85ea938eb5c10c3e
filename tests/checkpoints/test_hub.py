"""Bringing a checkpoint here, from a hub that may say no."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from server.checkpoints import hub
from server.checkpoints.profile import Profile, load_profile
from server.domain.errors import OperatorError
from tests.checkpoints.test_facts import write_checkpoint


@pytest.fixture
def profile() -> Profile:
    return load_profile("llama-guard-4-12b")


def refusal(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    response = httpx.Response(status, request=httpx.Request("GET", "https://hub.invalid/"))
    return kind("refused\nwith details", response=response)


def answer_with(monkeypatch: pytest.MonkeyPatch, online: Exception | str, offline: Exception | str) -> list[Any]:
    calls = []

    def snapshot_download(repository: str, **options: Any) -> str:
        calls.append((repository, options))
        answer = offline if options["local_files_only"] else online
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    return calls


NOTHING_CACHED = LocalEntryNotFoundError("nothing here")


def test_a_hub_id_is_downloaded_without_the_second_copy(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = answer_with(monkeypatch, "/cache/snapshot", NOTHING_CACHED)
    assert hub.locate(profile) == Path("/cache/snapshot")
    ((repository, options),) = calls
    assert (repository, options["revision"]) == ("meta-llama/Llama-Guard-4-12B", "main")
    assert options["ignore_patterns"] == ["original/*"]
    assert "token" not in options, "huggingface_hub reads HF_TOKEN itself"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (refusal(GatedRepoError, 403), "Accept the licence"),
        (refusal(RepositoryNotFoundError, 401), "Accept the licence"),
        (refusal(HfHubHTTPError, 401), "Accept the licence"),
        (refusal(HfHubHTTPError, 503), "The hub failed while .* was downloaded: refused$"),
        (refusal(RevisionNotFoundError, 404), "no revision 'main'"),
        (LocalEntryNotFoundError("offline"), "cannot be reached"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_refusals_are_told_in_words(
    profile: Profile, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    answer_with(monkeypatch, error, NOTHING_CACHED)
    with pytest.raises(OperatorError, match=told):
        hub.locate(profile)


@pytest.mark.parametrize(
    ("token", "told"), [("", "HF_TOKEN is not set"), ("hf_secret", "its account may have no access")]
)
def test_a_refusal_says_whether_there_is_a_token_but_not_which(
    profile: Profile, monkeypatch: pytest.MonkeyPatch, token: str, told: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    answer_with(monkeypatch, refusal(GatedRepoError, 403), NOTHING_CACHED)
    with pytest.raises(OperatorError, match=told) as raised:
        hub.locate(profile)
    assert "hf_secret" not in str(raised.value)


def test_a_refused_token_does_not_keep_cached_weights_from_serving(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_checkpoint(tmp_path)
    answer_with(monkeypatch, refusal(GatedRepoError, 403), str(folder))
    assert hub.locate(profile) == folder
    assert "Serving the copy in the local cache" in caplog.text


def test_what_is_cached_is_found_without_network(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreachable = RuntimeError("the network was used")
    answer_with(monkeypatch, unreachable, NOTHING_CACHED)
    assert hub.cached(profile) is None
    answer_with(monkeypatch, unreachable, str(tmp_path))
    assert hub.cached(profile) is None, "an aborted download has no configuration"
    answer_with(monkeypatch, unreachable, str(write_checkpoint(tmp_path)))
    assert hub.cached(profile) == tmp_path


def test_a_local_folder_is_taken_as_it_is(profile: Profile, tmp_path: Path) -> None:
    local = replace(profile, model=str(tmp_path / "weights"))
    with pytest.raises(OperatorError, match="weights does not exist"):
        hub.locate(local)
    assert hub.cached(local) is None
    write_checkpoint(tmp_path / "weights")
    assert hub.locate(local) == hub.cached(local) == tmp_path / "weights"
