"""The operator's settings of a deployment. Facts about the model are in its profile, not here."""

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, StringConstraints, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from server.checkpoints.profile import DEFAULT_PROFILE
from server.domain.taxonomy import OPENAI_CATEGORIES
from server.images import ImageLimits

PREFIX = "GUARD_"

API_KEY_VARIABLE = "GUARD_API_KEY"
"""The variable in which the commands that ask a running server look for their key."""

INTERNAL_VARIABLES = frozenset({"GUARD_SERVER_PID", API_KEY_VARIABLE})
"""Variables with the prefix that are not settings: one that the server sets for its processes, one for its clients."""

RETIRED_VARIABLES = {
    "GUARD_CATEGORY_SCORES": "write GUARD_CATEGORY_SCORES_FROM=0 instead of `always`, GUARD_CATEGORY_SCORES_FROM=1"
    " instead of `unsafe`"
}
"""Variables that were settings in an earlier release, and what to do instead. The start stops at them too."""

MINIMUM_PEPPER = 32

NO_CATEGORY = "none"

DATABASE = "database"
"""What stands in place of a folder if something is kept in the database."""

Code = Annotated[str, StringConstraints(min_length=1)]
Codes = Annotated[tuple[Code, ...], NoDecode]
Names = Annotated[tuple[str, ...], NoDecode]
Providers = Annotated[tuple[Annotated[str, StringConstraints(pattern=r"^[\w./-]+$")], ...], NoDecode]
HeaderText = Annotated[str, StringConstraints(pattern=r"^[ -~]*$", strip_whitespace=True)]
LISTS = (
    "allowed_hosts",
    "excluded_categories",
    "model_aliases",
    "openrouter_only",
    "openrouter_order",
    "openrouter_ignore",
)
"""Settings that are written with commas."""


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

    threshold: float = Field(0.5, gt=0, le=1, description="A verdict is unsafe when P(unsafe) is at least this.")
    excluded_categories: Codes = Field(
        (), description="Comma-separated codes that the model is never asked about, such as S5,S13."
    )
    minimum_verdict_mass: float = Field(
        0.9,
        gt=0,
        le=1,
        description="Least joint probability of `safe` and `unsafe` that counts as a verdict; below it the request"
        " gets an error.",
    )
    category_scores_from: float = Field(
        0.05,
        ge=0,
        le=1,
        description="When P(unsafe) of a safe verdict is at least this, a second, short pass scores every category."
        " Otherwise each category shows P(unsafe) as an upper bound. 0: always, 1: never.",
    )
    unmapped_category: str = Field(
        "illicit",
        description="OpenAI's category that a flagged moderation sets when its codes set none of the thirteen."
        " `none`: it then sets no category, and clients that read only the categories let it pass.",
    )

    request_policy: bool = Field(
        True,
        description="Whether requests may bring a `policy` of their own, stricter or laxer. Off: such requests are"
        " refused.",
    )
    finished_prompts: bool = Field(
        False,
        description="Whether the finished Guard prompts of every caller choose their categories and which message is"
        " judged. Off: only those of keys with that right; for all others, each message is judged by this"
        " server's policy.",
    )
    model_aliases: Names = Field(
        (),
        description="Comma-separated names, beside the profile's, that requests may use for the model; `*` accepts"
        " every name.",
    )

    max_queue: int = Field(
        256, ge=1, description="Verdicts that may be worked on or wait at the same time; requests beyond that get 429."
    )
    list_concurrency: int = Field(32, ge=1, description="Items of one list that are judged at the same time.")
    max_list: int = Field(2048, ge=1, description="Most items of one list.")
    deadline: float = Field(30.0, gt=0, description="Time that a verdict may take; after it the request gets 504.")
    drain_timeout: float = Field(
        25.0,
        gt=0,
        description="Time that requests get to finish after SIGTERM or SIGHUP. After it they get 503. The process ends"
        " at most 4 seconds later.",
    )
    verdict_cache: int = Field(
        0,
        ge=0,
        description="Verdicts to keep for when the same caller asks exactly the same again, at most 5 KiB of memory"
        " each; 0 keeps none.",
    )
    verdict_cache_ttl: float = Field(3600.0, gt=0, description="Time that a verdict is kept in the cache.")
    max_body_bytes: int = Field(64 * 2**20, ge=1024, description="Largest request body.")

    max_images: int = Field(5, ge=1, description="Most images of one request, sampled frames of animations included.")
    max_image_bytes: int = Field(20 * 2**20, ge=1024, description="Largest encoded image.")
    max_image_pixels: int = Field(50_000_000, ge=1, description="Most pixels of one image.")
    animation_frames: int = Field(3, ge=1, description="Frames of an animated image that are judged.")
    image_timeout: float = Field(10.0, gt=0, description="Time to fetch and decode all images of a request.")
    image_remote: bool = Field(False, description="Whether http(s) image URLs are fetched. Off: they are refused.")
    unseen_images: Literal["refuse", "judge_text"] = Field(
        "refuse",
        description="What happens to images when the model does not see them (its profile says so): `refuse` refuses"
        " the request; `judge_text` judges the text beside them, and `guard.images_unseen` counts them.",
    )

    data_dir: str = Field(
        "~/.llama-guard-server",
        description="Folder of secrets, and of the database unless `GUARD_DATABASE_URL` names another.",
    )
    database_url: SecretStr = Field(
        SecretStr(""),
        description="`postgresql://user:password@host/name`, or `sqlite:///path`; empty: SQLite in the data folder.",
    )

    auth: Literal["auto", "required", "off"] = Field(
        "auto",
        description="Whether requests need an API key. `auto`: they do unless the server listens on a loopback"
        " address.",
    )
    allowed_hosts: Names = Field(
        (),
        description="Comma-separated host names under which the server is served, beside those of loopback; `*` allows"
        " every name. Empty, with keys: every name. `GUARD_AUTH=off` on another address needs this setting.",
    )
    key_pepper: SecretStr = Field(
        SecretStr(""),
        description="Secret of at least 32 characters for the digests of API keys; empty: the file `pepper` in the"
        " data folder.",
    )
    backend: Literal["vllm", "openrouter"] = Field(
        "vllm",
        description="Backend that judges: `vllm`, the engine on this machine, or `openrouter`, which then gets every"
        " request.",
    )
    fallback: Literal["none", "openrouter"] = Field(
        "none",
        description="Backend to use when the local engine is overloaded, has too little memory for the prompt, or is"
        " down.",
    )
    fallback_after: float = Field(
        10.0, gt=0, description="Time that the local engine gets before a request moves to the fallback."
    )
    openrouter_api_key: SecretStr = Field(SecretStr(""), description="API key of an OpenRouter account.")
    openrouter_model: str = Field(
        "meta-llama/llama-guard-4-12b",
        pattern=r"^[\w.-]+/llama-guard-4[\w.-]*(:(free|nitro|floor|exacto))?$",
        description="Name of the model at OpenRouter. It must be a Llama Guard 4, so that codes mean the same.",
    )
    openrouter_url: str = Field(
        "https://openrouter.ai/api/v1",
        description="URL of OpenRouter's API; `http` is allowed only for this machine itself.",
    )
    openrouter_zdr: bool = Field(True, description="Use only providers that retain no data.")
    openrouter_data_collection: Literal["deny", "allow"] = Field(
        "deny", description="Whether providers may collect the data that is sent to them."
    )
    openrouter_only: Providers = Field((), description="Comma-separated providers that may be used; empty: any.")
    openrouter_order: Providers = Field((), description="Comma-separated providers in order of preference.")
    openrouter_ignore: Providers = Field((), description="Comma-separated providers that are never used.")
    openrouter_allow_fallbacks: bool = Field(
        True, description="Whether OpenRouter may use another provider when the first one fails."
    )
    openrouter_sort: Literal["", "price", "throughput", "latency"] = Field(
        "",
        description="How OpenRouter chooses among providers: by `price`, `throughput` or `latency`; empty: by its own"
        " rules.",
    )
    openrouter_max_price: float = Field(
        0.0, ge=0, description="Highest price in dollars for a million tokens, prompt or completion; 0: no limit."
    )
    openrouter_referer: HeaderText = Field("", description="URL of the application, shown in OpenRouter's statistics.")
    openrouter_title: HeaderText = Field("", description="Name of the application, shown in OpenRouter's statistics.")
    openrouter_concurrency: int = Field(32, ge=1, description="Most requests to OpenRouter at the same time.")
    openrouter_retries: int = Field(
        2, ge=0, description="Retries of a failed request, within the deadline and a budget shared by all requests."
    )
    openrouter_timeout: float = Field(10.0, gt=0, description="Time that each try gets.")
    price_per_hour: float = Field(
        0.0,
        ge=0,
        description="Price of this machine in dollars per hour, for the cost per million tokens in the metrics.",
    )
    max_file_bytes: int = Field(200 * 2**20, ge=1024, description="Largest file that can be uploaded.")
    max_stored_bytes: int = Field(
        10 * 2**30,
        ge=2**20,
        description="Most bytes of files of one key, uploads and results together. A file counts as at least 4 KiB."
        " Uploads beyond that are refused.",
    )
    max_open_batches: int = Field(
        100, ge=1, description="Most batches of one key that have not ended. New ones beyond that are refused."
    )
    batch_concurrency: int = Field(
        16, ge=1, description="Lines of batches that are judged at the same time while live requests leave room."
    )
    retention: int = Field(
        30 * 24 * 60 * 60,
        ge=3600,
        description="Longest time that uploads, results of batches and ended batches are kept.",
    )

    audit: str = Field(
        "",
        description="Where the audit trail is kept: a folder, or `database`; empty: there is none (docs/audit.md).",
    )
    audit_seals: str = Field(
        "",
        description="Where the seals of the audit trail are kept: a folder, or `database`; empty: the database for a"
        " trail in files, the folder `audit-seals` of the data folder for a trail in the database.",
    )
    audit_seal_interval: float = Field(60.0, gt=0, description="Time after which new records are sealed.")
    audit_failure: Literal["refuse", "continue"] = Field(
        "refuse",
        description="What happens when a record cannot be written: `refuse` answers 503 in place of the verdict;"
        " `continue` lets the verdict go, and counts it.",
    )
    audit_rotate_bytes: int = Field(
        64 * 2**20, ge=4096, description="Size at which a file of the audit trail is followed by another."
    )
    audit_retention: int = Field(
        0,
        ge=0,
        description="Time that audit records are kept, by whole files in a folder, to the record in a database; 0: for"
        " ever.",
    )
    audit_max_bytes: int = Field(
        0, ge=0, description="Size of all audit records beyond which the oldest are dropped; 0: no limit."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level of the server's own log lines; other packages log warnings and errors."
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="Form of log lines: `text`, or one JSON object each."
    )
    otlp_endpoint: str = Field(
        "",
        pattern=r"^(https?://[!-~]+)?$",
        description="URL of an OpenTelemetry collector (OTLP over HTTP, without `/v1/traces`); empty: nothing is"
        " traced, whatever OpenTelemetry's own variables say.",
    )

    probe_interval: float = Field(5.0, gt=0, description="Interval at which an idle engine is asked for a verdict.")
    ready_max_age: float = Field(
        12.0, gt=0, description="The server is not ready when its last verdict is older than this."
    )
    hung_after: float = Field(
        60.0,
        gt=0,
        description="`/health` answers 503 when the local engine has given no verdict for this time although it was"
        " asked, so that a supervisor restarts the server.",
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_variables(cls, values: dict[str, object]) -> dict[str, object]:
        known = INTERNAL_VARIABLES | {f"{PREFIX}{name.upper()}" for name in cls.model_fields}
        unknown = {name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known}
        retired = sorted(name for name in unknown if name.upper() in RETIRED_VARIABLES)
        faults = [f"{name} is no longer a setting: {RETIRED_VARIABLES[name.upper()]}" for name in retired]
        if never_known := sorted(unknown.difference(retired)):
            faults.append(f"there are no settings of these names: {', '.join(never_known)}")
        if faults:
            raise ValueError("; ".join(faults))
        return values

    @model_validator(mode="before")
    @classmethod
    def _split_lists(cls, values: dict[str, object]) -> dict[str, object]:
        for name in LISTS:
            items = values.get(name)
            if isinstance(items, str):
                values[name] = tuple(item.strip() for item in items.split(",") if item.strip())
        return values

    @field_validator("key_pepper")
    @classmethod
    def _refuse_a_short_pepper(cls, pepper: SecretStr) -> SecretStr:
        if 0 < len(pepper.get_secret_value()) < MINIMUM_PEPPER:
            raise ValueError(f"it must have at least {MINIMUM_PEPPER} characters")
        return pepper

    @field_validator("unmapped_category")
    @classmethod
    def _refuse_another_category(cls, name: str) -> str:
        if name not in OPENAI_CATEGORIES | {NO_CATEGORY}:
            names = ", ".join(sorted(OPENAI_CATEGORIES))
            raise ValueError(f"it must be {NO_CATEGORY}, or one of OpenAI's categories: {names}")
        return name

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> "Settings":
        if self.ready_max_age <= self.probe_interval:
            raise ValueError("ready_max_age must exceed probe_interval, or an idle server would never be ready")
        if self.audit and self.places_of_audit[0] == self.places_of_audit[1]:
            raise ValueError("audit_seals must be another place than audit: whoever cuts one off would reach both")
        if self.hung_after <= self.ready_max_age:
            raise ValueError("hung_after must exceed ready_max_age, or a server would be restarted that may recover")
        if self.list_concurrency > self.max_queue:
            raise ValueError("list_concurrency must not exceed max_queue, or no long list could ever be admitted")
        if not self.needs_keys and not self.listens_on_loopback and not self.allowed_hosts:
            raise ValueError(
                "auth=off on an address that others can reach needs allowed_hosts, the names under which the server is"
                " served: without them any web page could ask it through a visitor's browser"
            )
        return self

    @model_validator(mode="after")
    def _refuse_what_no_remote_can_do(self) -> "Settings":
        if not self.is_remote:
            return self
        key, url = self.openrouter_api_key.get_secret_value(), urlsplit(self.openrouter_url)
        if not re.fullmatch(r"[!-~]+", key):
            raise ValueError("openrouter needs an openrouter_api_key of printable ASCII characters without spaces")
        if url.scheme != "https" and not (url.scheme == "http" and url.hostname in ("127.0.0.1", "::1", "localhost")):
            raise ValueError(
                "openrouter_url must be https, or http to this machine: the key and all content are sent to it"
            )
        if not url.hostname or url.username is not None or url.password is not None or url.query or url.fragment:
            raise ValueError("openrouter_url must have no user, password, query or fragment, because it is logged")
        if self.threshold != 0.5 or self.excluded_categories:
            raise ValueError(
                "openrouter reports no probabilities and asks about every category:"
                " leave threshold at 0.5 and excluded_categories empty"
            )
        if self.fallback != "none" and self.backend != "vllm":
            raise ValueError("only the local engine can have a fallback: set backend to vllm, or fallback to none")
        if self.fallback != "none" and self.fallback_after >= self.deadline:
            raise ValueError("fallback_after must be below deadline, or the fallback would have no time")
        return self

    @property
    def is_remote(self) -> bool:
        """Whether content of callers may ever leave this machine."""
        return "openrouter" in (self.backend, self.fallback)

    @property
    def places(self) -> int:
        """Verdicts in work or waiting: what a fallback takes comes on top of the local engine's queue."""
        return self.max_queue + (min(self.max_queue, self.openrouter_concurrency) if self.fallback != "none" else 0)

    @property
    def category_of_unmapped(self) -> str | None:
        """The category of a flagged moderation whose codes set none of OpenAI's."""
        return None if self.unmapped_category == NO_CATEGORY else self.unmapped_category

    @property
    def changed_meanings(self) -> list[str]:
        """One sentence for each setting of this deployment that meant something else in an earlier release."""
        changes = []
        if "finished_prompts" in self.model_fields_set and not self.finished_prompts:
            changes.append(
                "GUARD_FINISHED_PROMPTS=false does not make finished Guard prompts plain text any more: each of their"
                " messages is judged by this server's policy."
            )
        return changes

    @property
    def places_of_audit(self) -> tuple[Path | None, Path | None]:
        """The folders of the audit's records and of its seals, None for the database. Only with an audit trail."""
        records = None if self.audit == DATABASE else Path(self.audit).expanduser().absolute()
        if self.audit_seals:
            return records, None if self.audit_seals == DATABASE else Path(self.audit_seals).expanduser().absolute()
        return records, None if records is not None else (self.data_folder / "audit-seals").absolute()

    @property
    def data_folder(self) -> Path:
        return Path(self.data_dir).expanduser()

    @property
    def database(self) -> str:
        """The URL of the database in use. It may hold a password."""
        return self.database_url.get_secret_value() or f"sqlite:///{self.data_folder / 'guard.db'}"

    @property
    def needs_keys(self) -> bool:
        """Whether requests need an API key. They do unless the address is certainly a loopback one."""
        return self.auth == "required" or (self.auth == "auto" and not self.listens_on_loopback)

    @property
    def listens_on_loopback(self) -> bool:
        """Whether only this machine can certainly reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

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
