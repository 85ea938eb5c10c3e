"""What the records say. None of them holds content, a secret, or anything else that a caller chose freely."""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from server.audit.trail import timestamp
from server.domain.caller import Handling
from server.domain.policy import Policy
from server.domain.verdict import Verdict
from server.settings import PREFIX, Settings

SHORT = 32
"""Hexadecimal digits of the hashes of facts."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Hashes of what every verdict of this server depends on: template, model and code."""

    model: str
    template: str
    code: str

    @classmethod
    def of(cls, model: str, template: str) -> "Facts":
        """`model` and `template` are whatever identifies them."""
        return cls(short_hash(model), short_hash(template), code_hash())


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:SHORT]


@cache
def code_hash() -> str:
    """The hash of this package's source, as it is installed: a version number says nothing of a local change."""
    folder, digest = Path(__file__).parents[1], hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:SHORT]


def policy_hash(key: bytes, policy: Policy) -> str:
    """Keyed, since a request may bring categories in its own words."""
    return hmac.digest(key, repr(policy).encode("utf-8", "surrogatepass"), "sha256").hex()[:SHORT]


def verdict_record(
    verdict: Verdict,
    handling: Handling,
    facts: Facts,
    *,
    now: float,
    policy: str,
    content: str,
    judged: str,
    seconds: float,
) -> dict[str, Any]:
    """The record of one verdict. `policy` and `content` are hashes, `seconds` the time since its request was read."""
    completion = verdict.completion
    return {
        "event": "verdict",
        "time": timestamp(now),
        "request_id": handling.request_id,
        "trace_id": handling.trace_id,
        "key_id": handling.tenant,
        "endpoint": handling.endpoint,
        "model": completion.model,
        "hashes": {"model": facts.model, "template": facts.template, "policy": policy, "code": facts.code},
        "content": content,
        "judged": judged,
        "verdict": "unsafe" if verdict.unsafe else "safe",
        "p_unsafe": verdict.p_unsafe,
        "threshold": verdict.threshold,
        "codes": verdict.categories,
        "scores": None if verdict.category_scores is None else dict(verdict.category_scores),
        "score_method": verdict.score_method,
        "images_unseen": verdict.images_unseen,
        "backend": completion.backend,
        "cache": verdict.cache,
        "seconds": {
            "total": round(seconds, 6),
            "queued": round(completion.queued_s, 6),
            "computed": round(completion.computed_s, 6),
        },
    }


def key_record(now: float, change: str, key_id: str, rights: Mapping[str, Any]) -> dict[str, Any]:
    """`change` is created or revoked."""
    return {"event": f"key.{change}", "time": timestamp(now), "key_id": key_id, **rights}


def start_record(
    key: bytes, now: float, program: str, version: str, settings: Settings, before: Mapping[str, str]
) -> dict[str, Any]:
    """The first record of a process. `before` are the hashes of the settings at the start before this one."""
    hashes = {
        PREFIX + name.upper(): hmac.digest(key, f"{name}={_plain(getattr(settings, name))!r}".encode(), "sha256").hex()[
            :SHORT
        ]
        for name, field in type(settings).model_fields.items()
        if getattr(settings, name) != field.get_default()
    }
    together = hmac.digest(key, repr(sorted(hashes.items())).encode(), "sha256").hex()[:SHORT]
    changed = sorted(name for name in {*hashes, *before} if hashes.get(name) != before.get(name))
    return {
        "event": "start",
        "time": timestamp(now),
        "program": program,
        "version": version,
        "code": code_hash(),
        "settings": {"hash": together, "changed": changed, "hashes": hashes},
    }


def _plain(value: Any) -> Any:
    return value.get_secret_value() if hasattr(value, "get_secret_value") else value
