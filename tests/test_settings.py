"""Settings come from GUARD_ variables, and whatever is wrong with them stops the start."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from server.__main__ import ERROR, main
from server.backends.vllm.mends.death_with_server import SERVER_PID
from server.images import ImageLimits
from server.settings import API_KEY_VARIABLE, INTERNAL_VARIABLES, MINIMUM_PEPPER, RETIRED_VARIABLES, Settings


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine that runs the tests, nor of an engine in this process."""
    for name in os.environ:
        if name.upper().startswith("GUARD_"):
            monkeypatch.delenv(name)


def faults(**values: Any) -> list[tuple[object, ...]]:
    """Where the refusal of these values points."""
    with pytest.raises(ValidationError) as caught:
        Settings(**values)
    return [fault["loc"] for fault in caught.value.errors()]


def test_defaults_serve_nobody_but_this_machine():
    settings = Settings()
    assert settings.host == "127.0.0.1"
    assert settings.image_remote is False
    assert settings.threshold == 0.5
    assert settings.minimum_verdict_mass == 0.9


def test_every_setting_says_what_it_is():
    assert all(field.description for field in Settings.model_fields.values())


def test_settings_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        Settings().threshold = 0.9  # type: ignore[misc]


# --- The environment --------------------------------------------------------------------------------------

FROM_ENVIRONMENT = [
    ("GUARD_PROFILE", "llama-guard-4-12b:48gb", "profile", "llama-guard-4-12b:48gb"),
    ("GUARD_PORT", "0", "port", 0),
    ("GUARD_THRESHOLD", "0.25", "threshold", 0.25),
    ("GUARD_THRESHOLD", "1", "threshold", 1.0),
    ("GUARD_IMAGE_REMOTE", "true", "image_remote", True),
    ("GUARD_IMAGE_REMOTE", "0", "image_remote", False),
    ("GUARD_CATEGORY_SCORES_FROM", "0", "category_scores_from", 0.0),
    ("GUARD_CATEGORY_SCORES_FROM", "1", "category_scores_from", 1.0),
    ("GUARD_UNMAPPED_CATEGORY", "violence/graphic", "unmapped_category", "violence/graphic"),
    ("GUARD_UNMAPPED_CATEGORY", "none", "unmapped_category", "none"),
    ("guard_max_queue", "64", "max_queue", 64),
    ("GUARD_EXCLUDED_CATEGORIES", "", "excluded_categories", ()),
    ("GUARD_EXCLUDED_CATEGORIES", "S5", "excluded_categories", ("S5",)),
    ("GUARD_EXCLUDED_CATEGORIES", "S5,S13", "excluded_categories", ("S5", "S13")),
    ("GUARD_EXCLUDED_CATEGORIES", " S5 , S13, ", "excluded_categories", ("S5", "S13")),
    ("GUARD_OPENROUTER_ONLY", "deepinfra/fp8, groq", "openrouter_only", ("deepinfra/fp8", "groq")),
]


@pytest.mark.parametrize(("variable", "text", "name", "value"), FROM_ENVIRONMENT)
def test_read_from_the_environment(monkeypatch, variable, text, name, value):
    monkeypatch.setenv(variable, text)
    assert getattr(Settings(), name) == value


def test_flags_override_the_environment(monkeypatch):
    monkeypatch.setenv("GUARD_PORT", "9000")
    monkeypatch.setenv("GUARD_HOST", "::1")
    settings = Settings(port=9001)
    assert (settings.port, settings.host) == (9001, "::1")


@pytest.mark.parametrize(
    "name", ["GUARD_THRESHHOLD", "guard_image_remotes", "GUARD_", "GUARD_MODEL_CONFIG", "Guard_Key"]
)
def test_unknown_variable_is_refused_by_name(monkeypatch, name):
    """A misspelt limit must not pass for one that is in force."""
    monkeypatch.setenv(name, "canary")
    monkeypatch.setenv("GUARD_THRESHOLD", "0.3")
    with pytest.raises(ValidationError) as caught:
        Settings()
    (fault,) = caught.value.errors(include_input=False)
    assert fault["msg"].endswith(f"there are no settings of these names: {name}")


@pytest.mark.parametrize("name", ["GUARD_CATEGORY_SCORES", "guard_category_scores"])
def test_a_variable_that_was_a_setting_says_what_to_write_instead(monkeypatch, name):
    monkeypatch.setenv(name, "always")
    monkeypatch.setenv("GUARD_A", "1")
    with pytest.raises(ValidationError) as caught:
        Settings()
    (fault,) = caught.value.errors(include_input=False)
    assert f"{name} is no longer a setting: write GUARD_CATEGORY_SCORES_FROM=0 instead of `always`" in fault["msg"]
    assert fault["msg"].endswith("there are no settings of these names: GUARD_A")


def test_what_replaces_a_former_setting_exists():
    names = {f"GUARD_{name.upper()}" for name in Settings.model_fields}
    assert not names & set(RETIRED_VARIABLES)
    for advice in RETIRED_VARIABLES.values():
        assert set(re.findall(r"GUARD_[A-Z_]+", advice)) <= names


def test_what_is_unmapped_has_a_category_unless_the_operator_wants_none():
    assert Settings().category_of_unmapped == "illicit"
    assert Settings(unmapped_category="violence").category_of_unmapped == "violence"
    assert Settings(unmapped_category="none").category_of_unmapped is None


def test_all_unknown_variables_are_named_at_once(monkeypatch):
    monkeypatch.setenv("GUARD_B", "1")
    monkeypatch.setenv("GUARD_A", "1")
    with pytest.raises(ValidationError, match="names: GUARD_A, GUARD_B"):
        Settings()


@pytest.mark.parametrize("name", ["GUARDIAN", "THRESHOLD", "PORT", "MY_GUARD_PORT"])
def test_variables_of_others_are_none_of_ours(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert Settings() == Settings.model_construct()


@pytest.mark.parametrize("name", [SERVER_PID, API_KEY_VARIABLE])
def test_variables_that_are_no_settings_are_tolerated(monkeypatch, name):
    """The engine leaves the one in the environment of this process, whoever calls a server may keep his key in the
    other."""
    assert {SERVER_PID, API_KEY_VARIABLE} == INTERNAL_VARIABLES
    monkeypatch.setenv(name, "1")
    assert Settings() == Settings.model_construct()


# --- Values that are refused ------------------------------------------------------------------------------

BAD = [
    *(("port", bad) for bad in (-1, 65536, "http", "80.5")),
    *(("threshold", bad) for bad in (0, -0.1, 1.01, "nan", "inf", "half", "")),
    *(("minimum_verdict_mass", bad) for bad in (0, -1, 1.01, "nan")),
    *(("category_scores_from", bad) for bad in (-0.01, 1.01, "nan", "inf", "always", "")),
    *(("unmapped_category", bad) for bad in ("", "None", "S7", "illicit,violence", "Illicit", "violence_graphic")),
    *(("max_queue", bad) for bad in (0, -1, "1e3", "inf")),
    *(("list_concurrency", bad) for bad in (0, -1)),
    *(("max_list", bad) for bad in (0, -1)),
    ("verdict_cache", -1),
    *(("verdict_cache_ttl", bad) for bad in (0, -1, "nan", "inf")),
    *(("deadline", bad) for bad in (0, -1, "nan", "inf")),
    *(("drain_timeout", bad) for bad in (0, -1, "nan", "inf")),
    *(("max_body_bytes", bad) for bad in (0, 1023, "64M")),
    *(("max_images", bad) for bad in (0, -1)),
    *(("max_image_bytes", bad) for bad in (0, 1023)),
    *(("max_image_pixels", bad) for bad in (0, -1)),
    *(("animation_frames", bad) for bad in (0, -1)),
    *(("image_timeout", bad) for bad in (0, -1, "inf")),
    *(("image_remote", bad) for bad in ("", "maybe", 2)),
    *(("unseen_images", bad) for bad in ("", "judge", "Refuse", "safe")),
    *(("backend", bad) for bad in ("", "OpenRouter", "none")),
    *(("fallback", bad) for bad in ("", "vllm", "true")),
    *(("fallback_after", bad) for bad in (0, -1, "inf", "nan")),
    *(
        ("openrouter_model", bad)
        for bad in (
            "",
            "llama-guard-4-12b",
            "a/b/c",
            "a/../b",
            "a/b?c",
            "openai/gpt-4o",
            "meta-llama/llama-guard-2-8b",
            "meta-llama/llama-guard-4-12b:online",
        )
    ),
    *(("openrouter_zdr", bad) for bad in ("", "maybe")),
    *(("openrouter_data_collection", bad) for bad in ("", "none", "Deny")),
    *(("openrouter_only", bad) for bad in ("deep infra", "a;b", "a,b c")),
    *(("openrouter_order", bad) for bad in ("deep infra", "a;b")),
    *(("openrouter_ignore", bad) for bad in ("deep infra", "a;b")),
    *(("openrouter_sort", bad) for bad in ("cheap", "Price")),
    *(("openrouter_max_price", bad) for bad in (-1, "inf", "nan", "free")),
    *(("openrouter_referer", bad) for bad in ("a\nb", "ä")),
    *(("openrouter_title", bad) for bad in ("a\r\nX-Evil: 1", "ä")),
    *(("openrouter_concurrency", bad) for bad in (0, -1)),
    *(("openrouter_retries", bad) for bad in (-1, "many")),
    *(("openrouter_timeout", bad) for bad in (0, -1, "inf", "nan")),
    *(("price_per_hour", bad) for bad in (-1, "inf", "nan")),
    *(("max_file_bytes", bad) for bad in (0, 1023, "200M")),
    *(("max_stored_bytes", bad) for bad in (0, 2**20 - 1, "10G")),
    *(("max_open_batches", bad) for bad in (0, -1)),
    *(("batch_concurrency", bad) for bad in (0, -1)),
    *(("retention", bad) for bad in (0, 3599, "never", "inf")),
    *(("audit_seal_interval", bad) for bad in (0, -1, "inf", "nan")),
    *(("audit_failure", bad) for bad in ("", "ignore", "Refuse")),
    *(("audit_rotate_bytes", bad) for bad in (0, 4095, "64M")),
    *(("audit_retention", bad) for bad in (-1, "never", "inf")),
    *(("audit_max_bytes", bad) for bad in (-1, "never", "inf")),
    *(("log_level", bad) for bad in ("", "INFO", "trace")),
    *(("log_format", bad) for bad in ("", "JSON", "logfmt")),
    *(("otlp_endpoint", bad) for bad in ("collector:4318", "grpc://collector", "http://a b")),
    *(("probe_interval", bad) for bad in (0, -1, "nan")),
    *(("ready_max_age", bad) for bad in (0, -1, "inf", "nan")),
    *(("hung_after", bad) for bad in (0, -1, "inf", "nan")),
    *(("auth", bad) for bad in ("", "on", "none", "Required", "false")),
    *(("key_pepper", bad) for bad in ("x", "x" * (MINIMUM_PEPPER - 1))),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_value_is_refused_where_it_stands(monkeypatch, name, value):
    assert {fault[0] for fault in faults(**{name: value})} == {name}
    monkeypatch.setenv(f"GUARD_{name.upper()}", str(value))
    assert {fault[0] for fault in faults()} == {name}


def test_bounds_of_every_number_are_tried():
    numbers = {name for name, field in Settings.model_fields.items() if field.annotation in (int, float)}
    assert numbers <= {name for name, _ in BAD}


@pytest.mark.parametrize("name", ["threshhold", "model_config", "api_key"])
def test_unknown_argument_is_refused(name):
    assert faults(**{name: 1}) == [(name,)]


CONTRADICTIONS: dict[str, dict[str, Any]] = {
    "an idle server would never be ready": {"probe_interval": 5, "ready_max_age": 4},
    "or only by luck": {"probe_interval": 5, "ready_max_age": 5},
    "a server would be restarted before it is not ready": {"ready_max_age": 60, "hung_after": 60},
    "no long list could ever be admitted": {"max_queue": 8, "list_concurrency": 9},
}


REMOTE: dict[str, Any] = {"backend": "openrouter", "openrouter_api_key": "sk-or-canary"}
BEHIND: dict[str, Any] = {"fallback": "openrouter", "openrouter_api_key": "sk-or-canary"}
CONTRADICTIONS |= {
    "a remote without a key": {"backend": "openrouter"},
    "a fallback without a key": {"fallback": "openrouter"},
    "a key of two words": {**REMOTE, "openrouter_api_key": "sk-or canary"},
    "a key that breaks a header": {**REMOTE, "openrouter_api_key": "sk-or-canary\n"},
    "a key beyond ASCII": {**REMOTE, "openrouter_api_key": "sk-ör"},
    "a key in the clear": {**REMOTE, "openrouter_url": "http://openrouter.ai/api/v1"},
    "a host that only begins like this one": {**REMOTE, "openrouter_url": "http://localhost.example/api/v1"},
    "no URL": {**REMOTE, "openrouter_url": "openrouter.ai"},
    "no host": {**REMOTE, "openrouter_url": "https:///api/v1"},
    "a port and no host": {**REMOTE, "openrouter_url": "https://:443/api/v1"},
    "a threshold without probabilities": {**REMOTE, "threshold": 0.4},
    "a threshold that keeps everything here": {**BEHIND, "threshold": 0.4},
    "categories that the remote asks about": {**REMOTE, "excluded_categories": "S5"},
    "a fallback behind itself": {**REMOTE, "fallback": "openrouter"},
    "a fallback without time": {**BEHIND, "fallback_after": 30, "deadline": 30},
}


@pytest.mark.parametrize("values", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_contradictions_are_refused(values):
    assert faults(**values) == [()]


def test_nothing_leaves_unless_it_is_said():
    assert Settings().is_remote is False
    assert Settings(openrouter_api_key="sk-or-canary").is_remote is False
    assert Settings(**REMOTE).is_remote
    assert Settings(**BEHIND).is_remote
    assert (Settings().openrouter_zdr, Settings().openrouter_data_collection) == (True, "deny")


@pytest.mark.parametrize("values", [REMOTE, {**REMOTE, "openrouter_url": "http://example.org"}])
def test_the_key_is_never_shown(values):
    try:
        shown = repr(Settings(**values)) + str(Settings(**values).model_dump())
    except ValidationError as error:
        shown = "; ".join(fault["msg"] for fault in error.errors(include_input=False))
    assert "canary" not in shown


@pytest.mark.parametrize("values", [REMOTE, BEHIND], ids=["remote", "behind"])
@pytest.mark.parametrize(
    "url",
    [
        "https://canary@gateway.example/api/v1",
        "https://me:canary@gateway.example/api/v1",
        "https://:canary@gateway.example/api/v1",
        "https://gateway.example/api/v1?key=canary",
        "https://gateway.example/api/v1#canary",
        "http://me:canary@127.0.0.1:9/api/v1",
    ],
)
def test_a_url_with_a_secret_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    values: dict[str, str],
    url: str,
) -> None:
    assert faults(**values, openrouter_url=url) == [()]
    for name, value in {**values, "openrouter_url": url, "data_dir": str(tmp_path)}.items():
        monkeypatch.setenv(f"GUARD_{name.upper()}", value)
    assert main(["keys", "list"]) == ERROR
    shown = "".join(capsys.readouterr())
    assert "openrouter_url must have no user, password, query or fragment" in shown
    assert not any(word in shown for word in ("canary", "gateway", "127.0.0.1"))


@pytest.mark.parametrize("host", ["127.0.0.1:9", "localhost", "[::1]:9"])
def test_this_machine_may_be_spoken_to_in_the_clear(host):
    assert Settings(**REMOTE, openrouter_url=f"http://{host}/api/v1").is_remote


def test_a_fallback_adds_its_places_to_the_queue():
    assert Settings(max_queue=100).places == 100
    assert Settings(**BEHIND, max_queue=100, openrouter_concurrency=8).places == 108
    assert Settings(**BEHIND, max_queue=32, openrouter_concurrency=99).places == 64


def test_nearest_values_do_not_contradict():
    assert Settings(probe_interval=5, ready_max_age=5.1).ready_max_age == 5.1
    assert Settings(ready_max_age=60, hung_after=60.1).hung_after == 60.1
    assert Settings(max_queue=8, list_concurrency=8).list_concurrency == 8


# --- What others read -------------------------------------------------------------------------------------


def test_limits_of_images():
    settings = Settings(
        max_images=2,
        max_image_bytes=2000,
        max_image_pixels=300,
        animation_frames=4,
        image_timeout=5.5,
        image_remote=True,
    )
    assert settings.image_limits == ImageLimits(
        max_images=2, max_bytes=2000, max_pixels=300, animation_frames=4, timeout_s=5.5, remote=True
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1"])
def test_nobody_needs_a_key_on_the_loopback_unless_it_is_said(host):
    assert Settings(host=host).needs_keys is False
    assert Settings(host=host, auth="required").needs_keys is True


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "192.168.1.5", "10.0.0.1", "guard.example", "localhost.example", "127.0.0.1.example"]
)
def test_elsewhere_everybody_needs_a_key_unless_it_is_waived(host):
    assert Settings(host=host).needs_keys is True
    assert Settings(host=host, auth="off", allowed_hosts="*").needs_keys is False
    with pytest.raises(ValidationError, match="needs allowed_hosts"):
        Settings(host=host, auth="off")


def test_a_pepper_is_not_shown():
    settings = Settings(key_pepper="canary" * 8)
    assert settings.key_pepper.get_secret_value() == "canary" * 8
    assert "canary" not in f"{settings!r} {settings}"
