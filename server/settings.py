"""What an operator decides about a deployment. Facts about the model are in its profile, not here."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, StringConstraints, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from server.images import ImageLimits
from server.policy import CODE
from server.profile import DEFAULT_PROFILE

PREFIX = "GUARD_"

INTERNAL_VARIABLES = frozenset({"GUARD_SERVER_PID"})
"""Variables of the prefix that the server sets for its own processes."""

CLIENT_VARIABLES = frozenset({"GUARD_API_KEY"})
"""Variables of the prefix that commands read which talk to a server."""

Code = Annotated[str, StringConstraints(pattern=f"^{CODE.pattern}$")]
Codes = Annotated[tuple[Code, ...], NoDecode]


class Settings(BaseSettings):
    """Read from the environment with the prefix GUARD_ (docs/settings.md); command-line flags override.

    Frozen, and refused when a value is wrong, when two contradict each other, or when a variable with the prefix is no
    setting: a misspelt limit must not pass for one that is in force. Durations are seconds, sizes bytes.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", allow_inf_nan=False)

    profile: str = Field(
        DEFAULT_PROFILE, description="Model profile: a name in model_config/, `name:variant`, or a folder."
    )
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")

    threshold: float = Field(0.5, gt=0, le=1, description="A verdict is unsafe from this P(unsafe) on.")
    excluded_categories: Codes = Field((), description="Comma-separated codes that are never asked about: S5,S13.")
    minimum_verdict_mass: float = Field(
        0.9, gt=0, le=1, description="Least joint probability of `safe` and `unsafe` that makes a verdict."
    )
    category_scores: Literal["unsafe", "always"] = Field(
        "unsafe",
        description="`always` spends a second pass on safe verdicts to score every category; else they show P(unsafe)"
        " as an upper bound.",
    )

    request_policy: bool = Field(
        True, description="Requests may bring a `policy` of their own, stricter or laxer. Off: it is refused."
    )

    max_queue: int = Field(256, ge=1, description="Verdicts being worked on or waiting; beyond it requests get 429.")
    list_concurrency: int = Field(32, ge=1, description="Items of one list that are judged at the same time.")
    max_list: int = Field(2048, ge=1, description="Items that one list may hold.")
    deadline: float = Field(30.0, gt=0, description="A verdict that is not there after this time becomes a 504.")
    drain_timeout: float = Field(
        30.0,
        gt=0,
        description="Time that admitted requests get to finish after SIGTERM; below the deadline, some may be lost.",
    )
    max_body_bytes: int = Field(64 * 2**20, ge=1024, description="Largest request body.")

    max_images: int = Field(5, ge=1, description="Images of one request, sampled frames of animations included.")
    max_image_bytes: int = Field(20 * 2**20, ge=1024, description="Largest encoded image.")
    max_image_pixels: int = Field(50_000_000, ge=1, description="Most pixels of one image.")
    animation_frames: int = Field(3, ge=1, description="Frames that an animated image is judged by.")
    image_timeout: float = Field(10.0, gt=0, description="Time to fetch and decode all images of a request.")
    image_remote: bool = Field(False, description="Fetch http(s) image URLs. Off: they are refused.")

    data_dir: str = Field(
        "~/.llama-guard-server", description="Folder of the database, unless another one is named, and of secrets."
    )
    database_url: SecretStr = Field(
        SecretStr(""),
        description="`postgresql://user:password@host/name`, or `sqlite:///path`; empty: SQLite in the data folder.",
    )

    max_file_bytes: int = Field(200 * 2**20, ge=1024, description="Largest file that may be uploaded.")
    batch_concurrency: int = Field(
        16, ge=1, description="Lines of batches that are judged at the same time, while live requests leave room."
    )

    probe_interval: float = Field(5.0, gt=0, description="An idle engine is asked for a verdict this often.")
    ready_max_age: float = Field(12.0, gt=0, description="Not ready once the last verdict is older than this.")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_variables(cls, values: dict[str, object]) -> dict[str, object]:
        known = INTERNAL_VARIABLES | CLIENT_VARIABLES | {f"{PREFIX}{name.upper()}" for name in cls.model_fields}
        unknown = [name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known]
        if unknown:
            raise ValueError(f"there are no settings of these names: {', '.join(sorted(unknown))}")
        return values

    @model_validator(mode="before")
    @classmethod
    def _split_codes(cls, values: dict[str, object]) -> dict[str, object]:
        codes = values.get("excluded_categories")
        if isinstance(codes, str):
            values["excluded_categories"] = tuple(code.strip() for code in codes.split(",") if code.strip())
        return values

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> "Settings":
        if self.ready_max_age <= self.probe_interval:
            raise ValueError("ready_max_age must exceed probe_interval, or an idle server would never be ready")
        if self.list_concurrency > self.max_queue:
            raise ValueError("list_concurrency must not exceed max_queue, or no long list could ever be admitted")
        return self

    @property
    def data_folder(self) -> Path:
        return Path(self.data_dir).expanduser()

    @property
    def database(self) -> str:
        """The URL of the database in use. It may hold a password."""
        return self.database_url.get_secret_value() or f"sqlite:///{self.data_folder / 'guard.db'}"

    @property
    def image_limits(self) -> ImageLimits:
        return ImageLimits(
            max_images=self.max_images,
            max_bytes=self.max_image_bytes,
            max_pixels=self.max_image_pixels,
            animation_frames=self.animation_frames,
            timeout_s=self.image_timeout,
            remote=self.image_remote,
        )
