"""A checkpoint's files: in a local folder, or downloaded from the hub."""

import logging
import os
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from server.checkpoints.profile import Profile
from server.domain.errors import OperatorError

log = logging.getLogger(__name__)

FILES = ("*.safetensors", "*.json", "*.jinja", "tokenizer*")
"""The files that the engine needs. Meta's repositories hold the weights a second time, under original/."""


def locate(profile: Profile) -> Path:
    """The folder of the profile's checkpoint. Downloads it from the hub if it is not yet in the cache.

    huggingface_hub reads HF_TOKEN from the environment. Raises OperatorError if the folder does not exist or the hub
    does not give access to the files.
    """
    if profile.is_local:
        return _local_folder(profile)
    try:
        return Path(_snapshot(profile, local_files_only=False))
    except (GatedRepoError, RepositoryNotFoundError) as error:
        # The hub answers "not found" for a gated repository too, when nobody is logged in.
        return _cached_despite(error, profile)
    except RevisionNotFoundError as error:
        raise OperatorError(
            f"{profile.model} has no revision {profile.revision!r}. Correct `revision` in the profile."
        ) from error
    except LocalEntryNotFoundError as error:
        raise OperatorError(
            f"{profile.model} is not in the local cache, and the hub cannot be reached: there is no network, or "
            "HF_HUB_OFFLINE is set. Download the model on a machine with network and copy the cache (HF_HOME), or set "
            "`model` in a profile to the folder of the checkpoint."
        ) from error
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            return _cached_despite(error, profile)
        raise OperatorError(f"The hub failed while {profile.model} was downloaded: {_first_line(error)}") from error
    except OSError as error:
        raise OperatorError(f"{profile.model} could not be downloaded: {_first_line(error)}") from error


def cached(profile: Profile) -> Path | None:
    """The folder of the profile's checkpoint if it is already on this machine, else None. Uses no network."""
    if profile.is_local:
        return Path(profile.model) if Path(profile.model, "config.json").is_file() else None
    try:
        folder = Path(_snapshot(profile, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return folder if (folder / "config.json").is_file() else None


def _snapshot(profile: Profile, *, local_files_only: bool) -> str:
    folder: str = snapshot_download(
        profile.model,
        revision=profile.revision,
        allow_patterns=list(FILES),
        ignore_patterns=["original/*"],
        local_files_only=local_files_only,
    )
    return folder


def _local_folder(profile: Profile) -> Path:
    folder = Path(profile.model)
    if not folder.is_dir():
        raise OperatorError(f"{profile.name}: the folder {folder} does not exist. Correct `model` in the profile.")
    return folder


def _cached_despite(refused: Exception, profile: Profile) -> Path:
    """The copy in the cache. An expired token must not keep a server down that already has its weights."""
    folder = cached(profile)
    if folder is None:
        raise OperatorError(_refusal(profile)) from refused
    log.warning("%s Serving the copy in the local cache.", _refusal(profile))
    return folder


def _refusal(profile: Profile) -> str:
    token = "is set, but its account may have no access" if os.environ.get("HF_TOKEN") else "is not set"
    return (
        f"The hub refused access to {profile.model} (HF_TOKEN {token}). Accept the licence on the model's page at the "
        "hub, create a token that may read gated repositories, and set HF_TOKEN to it in the server's environment."
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
