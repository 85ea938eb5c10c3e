"""`llama-guard-server audit verify | replay | drop`: check the trail, judge again what was judged, drop old records."""

import argparse
import asyncio
import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast

import httpx

from server.api.http.body import validate
from server.api.names import ModelNames
from server.api.service import Service
from server.audit.chain import BadLine, Secrets, parsed
from server.audit.content import content_hash
from server.audit.ledger import DROP, begun_trail, check_places, places_of
from server.audit.verify import ChainReport, Report, verify
from server.batches.endpoints import ENDPOINTS
from server.checkpoints.profile import load_profile
from server.commands.days import seconds_of
from server.domain.caller import Handling
from server.domain.conversation import Conversation
from server.domain.errors import GuardError, OperatorError
from server.domain.policy import Policy
from server.families.base import family_named
from server.loading import operator_policy
from server.moderation.moderator import Moderator
from server.moderation.sight import Sight
from server.rows.messages import messages_of
from server.rows.reading import Source
from server.settings import API_KEY_VARIABLE, Settings
from server.store.database import DatabaseError, database_of
from server.store.pepper import pepper_of

WHOLE, TAMPERED = 0, 1
SAME, DIFFERENT, NOT_COMPARED = 0, 1, 2
TIMEOUT_S = 600.0
HASHES = ("model", "template", "policy", "code")


def run(settings: Settings, options: argparse.Namespace) -> int:
    """Run the command. Raises OperatorError if it cannot be done."""
    settings = _of_place(settings, options.place)
    try:
        asyncio.run(_bring_up_to_date(settings))
        secrets = Secrets.of(pepper_of(settings))
        if options.audit_command == "verify":
            return _verify(settings, secrets, options)
        if options.audit_command == "drop":
            return _drop(settings, secrets, options)
        return asyncio.run(_replay(settings, secrets, options))
    except DatabaseError as error:
        raise OperatorError(str(error)) from error
    except OSError as error:
        raise OperatorError(f"The audit trail cannot be read: {error.strerror or type(error).__name__}.") from error


def _of_place(settings: Settings, place: str | None) -> Settings:
    if place:
        settings = settings.model_copy(update={"audit": place})
    if not settings.audit:
        raise OperatorError("There is no audit trail to read. Set GUARD_AUDIT as the server has it, or name the place.")
    records, _ = settings.places_of_audit
    if records is not None and not records.is_dir():
        raise OperatorError(f"{records} is no folder. Name the folder of the audit trail, or `database`.")
    check_places(settings)
    if not settings.key_pepper.get_secret_value() and not (settings.data_folder / "pepper").is_file():
        # A new one would be made, and every record would look as if it had been altered.
        raise OperatorError(
            "The pepper of the server that wrote the trail is needed. Set GUARD_DATA_DIR or GUARD_KEY_PEPPER as there."
        )
    return settings


async def _bring_up_to_date(settings: Settings) -> None:
    if None in settings.places_of_audit:
        database = database_of(settings)
        await database.open()
        await database.close()


# --- verify ----------------------------------------------------------------------------------------------


def _verify(settings: Settings, secrets: Secrets, options: argparse.Namespace) -> int:
    records, seals = places_of(settings)
    report = verify(secrets, records, seals)
    if not report.chains:
        raise OperatorError("There are no records in this place.")
    if options.json:
        _print(json.dumps(_document(report)))
    else:
        for chain in report.chains:
            _print(_in_words(chain))
        faults = sum(chain.fault is not None for chain in report.chains)
        _print("the trail is whole" if report.whole else f"TAMPERED: {faults} of {len(report.chains)} chains")
    return WHOLE if report.whole else TAMPERED


def _document(report: Report) -> dict[str, Any]:
    return {
        "whole": report.whole,
        "chains": [{name: getattr(chain, name) for name in ChainReport.__slots__} for chain in report.chains],
    }


def _in_words(chain: ChainReport) -> str:
    words = [f"{chain.chain}: {chain.records} records"]
    if chain.dropped:
        words.append(f"{chain.dropped} older ones were dropped")
    words.append(
        f"whole up to the seal of {chain.sealed_at} (record {chain.sealed})" if chain.sealed else "no seal holds"
    )
    if chain.unsealed:
        words.append(f"{chain.unsealed} after it have no seal yet")
    if chain.crash:
        words.append(f"CRASH: {chain.crash}")
    if chain.fault:
        words.append(f"FAULT: {chain.fault}")
    return "; ".join(words)


# --- drop ------------------------------------------------------------------------------------------------


def _drop(settings: Settings, secrets: Secrets, options: argparse.Namespace) -> int:
    trail = begun_trail(settings, secrets, DROP, keep_s=seconds_of(options.older_than, "--older-than"))
    try:
        dropped = trail.drop_old()
        trail.end()
    finally:
        trail.close()
    _print(f"dropped: {dropped} parts of the trail (files, or groups of rows)")
    return 0


# --- replay ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request to send again, and the hashes of the contents that are judged in it."""

    endpoint: str
    body: Mapping[str, Any]
    contents: tuple[str, ...]


class _Captured(Exception):
    def __init__(self, conversations: tuple[Conversation, ...]) -> None:
        super().__init__("captured")
        self.conversations = conversations


class _Capturing(Service):
    """A service that judges nothing: it only shows which conversations a request comes to."""

    __slots__ = ()

    async def judge(self, conversations: Any, **_: Any) -> NoReturn:
        raise _Captured(tuple(conversations))

    async def judge_each(self, conversations: Any, **_: Any) -> NoReturn:
        raise _Captured(tuple(each for each in conversations if isinstance(each, Conversation)))


async def _replay(settings: Settings, secrets: Secrets, options: argparse.Namespace) -> int:
    source, folder = Source(Path(options.file)), Path(options.file).parent
    service = _capturing(settings)
    recorded = _recorded(settings, await _contents_of(source, folder, service, secrets))
    base = options.url.rstrip("/").removesuffix("/v1")
    key = options.api_key or os.environ.get(API_KEY_VARIABLE)
    counts = {"same": 0, "different": 0, "not_recorded": 0, "failed": 0}
    results = []
    async with httpx.AsyncClient(
        base_url=base, headers={"authorization": f"Bearer {key}"} if key else {}, timeout=TIMEOUT_S
    ) as client:
        for placed in source:
            id_ = str(placed.row.get("id", placed.row.get("custom_id", placed.place)))
            results.append((id_, await _again(client, service, secrets, recorded, placed.row, folder)))
    # What the server has recorded meanwhile, if it writes to this trail, says by which hashes it judged.
    now = _by_request(settings, {str(result.get("request_id")) for _, result in results})
    for id_, result in results:
        counts[result["result"]] += 1
        for item in result.get("items", ()):
            new = now.get((result["request_id"], item.pop("content")))
            item["changed"] = None if new is None or item["hashes"] is None else _changed(item["hashes"], new["hashes"])
            item.pop("hashes")
        _print(json.dumps({"id": id_, **result}) if options.json else _row_in_words(id_, result))
    if not options.json:
        _print(", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items()))
    if counts["failed"] or counts["not_recorded"]:
        return NOT_COMPARED
    return DIFFERENT if counts["different"] else SAME


def _capturing(settings: Settings) -> _Capturing:
    """It has the profile of this deployment, since a dialect asks its family what a finished prompt is."""
    profile = load_profile(settings.profile)
    policy = operator_policy(settings, profile)
    return _Capturing(
        # Nothing is judged here: of the moderator a dialect reads only the policy, and nothing of the sight.
        moderator=cast("Moderator", _Policies(policy)),
        names=ModelNames(profile, 0, ("*",)),
        sight=cast("Sight", None),
        family=family_named(profile.family),
        taxonomy=profile.taxonomy,
        settings=settings,
        fingerprint="",
    )


@dataclass(frozen=True, slots=True)
class _Policies:
    policy: Policy


async def _asked(service: _Capturing, secrets: Secrets, row: Mapping[str, Any], folder: Path) -> _Asked:
    """Raises OperatorError or GuardError for a row that is no request."""
    if "url" in row and isinstance(row.get("body"), dict):
        endpoint, body = str(row["url"]), row["body"]
    elif "messages" in row or "text" in row or "images" in row:
        endpoint = "/v1/chat/completions"
        # Options of a request body stay; the fields of a row are those of `check --file`.
        options = {name: value for name, value in row.items() if name not in _ROW} if "messages" in row else {}
        body = {**options, "messages": messages_of(dict(row), folder)}
    else:
        endpoint, body = ("/v1/responses" if _is_response(row) else "/v1/moderations"), _without_id(row)
    if endpoint not in ENDPOINTS:
        raise OperatorError(f"No row can be judged again at this `url`. Use one of {', '.join(ENDPOINTS)}.")
    body = {name: value for name, value in body.items() if name not in ("stream", "stream_options")}
    found = ENDPOINTS[endpoint]
    handling = Handling(finished_prompts=service.settings.finished_prompts)
    try:
        await found.answer(service, validate(body, found.body), handling)
    except _Captured as captured:
        contents = tuple(content_hash(secrets.content, each) for each in captured.conversations)
        return _Asked(endpoint, body, contents)
    raise OperatorError("The row asks for no verdict.")


_ROW = frozenset({"id", "text", "images", "response", "messages"})


def _is_response(row: Mapping[str, Any]) -> bool:
    return "instructions" in row or "max_output_tokens" in row


def _without_id(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "id"}


async def _again(
    client: httpx.AsyncClient,
    service: _Capturing,
    secrets: Secrets,
    recorded: Mapping[str, dict[str, Any]],
    row: Mapping[str, Any],
    folder: Path,
) -> dict[str, Any]:
    """Judge one row again, and compare. Its `result` is same, different, not_recorded or failed."""
    try:
        asked = await _asked(service, secrets, row, folder)
        response = await client.post(asked.endpoint, json=asked.body)
        if not response.is_success:
            return {"result": "failed", "why": f"the server answered {response.status_code}"}
        details = _details(response.json())
    except (OperatorError, GuardError) as error:
        return {"result": "failed", "why": str(error)}
    except httpx.HTTPError as error:
        return {"result": "failed", "why": f"the server cannot be reached ({type(error).__name__})"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {"result": "failed", "why": "the server answered without a verdict"}
    before = [recorded.get(content) for content in asked.contents]
    items: list[dict[str, Any]] = [
        {
            "content": content,
            "recorded": None if old is None else _outcome(old["verdict"], old["p_unsafe"], old["codes"]),
            "now": _outcome(new["verdict"], new["p_unsafe"], new["categories"]),
            "recorded_at": None if old is None else old["time"],
            "hashes": None if old is None else old["hashes"],
        }
        for content, old, new in _paired(asked.contents, before, details)
    ]
    if not items or any(old is None for old in before) or len(items) != len(before):
        result = "not_recorded"
    else:
        differs = any(_answer(item["recorded"]) != _answer(item["now"]) for item in items)
        result = "different" if differs else "same"
    return {"result": result, "request_id": response.headers.get("x-request-id"), "items": items}


def _paired(contents: tuple[str, ...], before: Any, details: list[dict[str, Any]]) -> Iterator[tuple[str, Any, Any]]:
    """The verdicts of a request that is judged message by message are told as one: it cannot be compared."""
    return zip(contents, before, details, strict=True) if len(contents) == len(details) else iter(())


def _outcome(verdict: str, p_unsafe: float | None, codes: Any) -> dict[str, Any]:
    return {"verdict": verdict, "p_unsafe": p_unsafe, "codes": list(codes)}


def _answer(outcome: Mapping[str, Any]) -> tuple[str, list[str]]:
    """What makes two verdicts different. P(unsafe) moves a little with the load, and is shown."""
    return outcome["verdict"], sorted(outcome["codes"])


def _details(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The field `guard` of each verdict in a reply."""
    return [result["guard"] for result in document["results"]] if "results" in document else [document["guard"]]


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    return [name for name in HASHES if before.get(name) != now.get(name)]


def _row_in_words(id_: str, result: Mapping[str, Any]) -> str:
    words = [f"{id_}: {result['result'].replace('_', ' ')}"]
    if "why" in result:
        words.append(result["why"])
    for item in result.get("items", ()):
        old, new = item["recorded"], item["now"]
        words.append(f"{_short(old) if old else 'no record'} -> {_short(new)}")
        if item["changed"] is None:
            words.append("the server at --url does not write to this trail, so its hashes are unknown")
        elif item["changed"]:
            words.append(f"changed: {', '.join(item['changed'])}")
    return "; ".join(words)


def _short(outcome: Mapping[str, Any]) -> str:
    p_unsafe = "" if outcome["p_unsafe"] is None else f" {outcome['p_unsafe']:.4f}"
    return f"{outcome['verdict']} {','.join(outcome['codes'])}".strip() + p_unsafe


# --- The records -----------------------------------------------------------------------------------------


async def _contents_of(source: Source, folder: Path, service: _Capturing, secrets: Secrets) -> set[str]:
    """The hashes of all that the file asks about: a trail may hold far more than that."""
    contents = set[str]()
    for placed in source:
        with contextlib.suppress(OperatorError, GuardError):
            contents.update((await _asked(service, secrets, placed.row, folder)).contents)
    return contents


def _recorded(settings: Settings, contents: set[str]) -> dict[str, dict[str, Any]]:
    """The last verdict on each of the contents. `audit verify` says whether the records can be trusted."""
    return {body["content"]: body for body in _verdicts(settings) if body["content"] in contents}


def _by_request(settings: Settings, requests: set[str]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (body["request_id"], body["content"]): body for body in _verdicts(settings) if body["request_id"] in requests
    }


def _verdicts(settings: Settings) -> Iterator[dict[str, Any]]:
    records, _ = places_of(settings)
    for chain in records.chains():
        for line in records.lines(chain):
            try:
                body, _ = parsed(line.content)
            except BadLine:
                continue
            if body.get("event") == "verdict":
                yield body


def _print(line: str) -> None:
    print(line)  # noqa: T201
