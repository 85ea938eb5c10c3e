"""From a profile to a backend: find the checkpoint, read it, and refuse a mismatch before anything loads."""

import logging
from collections.abc import Sequence
from pathlib import Path

from server.backends.base import Backend
from server.backends.fallback import FallbackBackend
from server.backends.openrouter.backend import OpenRouterBackend
from server.backends.vllm.backend import VllmBackend
from server.checkpoints import fit
from server.checkpoints.facts import read_facts
from server.checkpoints.hub import locate
from server.checkpoints.profile import DEFAULT_PROFILE, Network, Profile, load_profile
from server.checkpoints.verify import verify
from server.domain.errors import OperatorError
from server.domain.policy import Policy
from server.families.base import Asker, Family, family_named
from server.families.checks import differences, stands_apart
from server.families.tokenizer import PromptTokenizer
from server.settings import Settings

log = logging.getLogger(__name__)


def load_backend(settings: Settings, profile: Profile) -> Backend:
    """The backend for `profile`, not yet started: the local engine, OpenRouter, or OpenRouter as the engine's fallback.

    Raises OperatorError with a message for the operator, and InvalidRequest like `operator_policy`.
    """
    if settings.backend == "openrouter":
        return _remote(settings, profile)
    local = _local(settings, profile)
    if settings.fallback == "none":
        return local
    return FallbackBackend(
        local,
        _remote(settings, profile),
        after_s=settings.fallback_after,
        places=settings.max_queue,
        context_tokens=profile.context_tokens,
    )


def operator_policy(settings: Settings, profile: Profile) -> Policy:
    """The policy of requests that bring none. Raises InvalidRequest if it does not fit the profile."""
    policy = Policy(
        profile.taxonomy,
        scores_from=settings.category_scores_from,
        minimum_mass=settings.minimum_verdict_mass,
        own_codes=family_named(profile.family).own_codes,
    )
    return policy.narrowed(excluded=settings.excluded_categories, threshold=settings.threshold)


def _remote(settings: Settings, profile: Profile) -> OpenRouterBackend:
    official = load_profile(DEFAULT_PROFILE).taxonomy
    if profile.taxonomy != official:
        raise OperatorError(
            f"{profile.name} does not have the categories of {DEFAULT_PROFILE}, the only ones that OpenRouter can ask"
            f" about. Set GUARD_PROFILE to {DEFAULT_PROFILE}, or do not use OpenRouter."
        )
    return OpenRouterBackend(settings, official, family_named(profile.family))


def _local(settings: Settings, profile: Profile) -> VllmBackend:
    policy = operator_policy(settings, profile)
    gpus = _gpus_for(profile)
    _check_fits(profile, profile.network, gpus)
    log.info("reading the checkpoint %s", profile.model)
    folder = locate(profile)
    facts = read_facts(folder)
    try:
        tokenizer = PromptTokenizer.from_folder(folder)
    except Exception as error:  # tokenizers raises nothing more specific
        raise OperatorError(f"{folder}: the tokenizer cannot be used: {error}") from error
    family = family_named(profile.family)
    verify(profile, facts, family.tokens, tokenizer.single_id)
    asker = _asker(family, profile, folder, tokenizer, facts.eos_token_ids)
    _check_fits(profile, facts.network, gpus)
    _compare_templates(family, profile, facts.chat_template)
    return VllmBackend(profile, folder, facts, tokenizer, asker, policy=policy)


def _asker(family: Family, profile: Profile, folder: Path, tokenizer: PromptTokenizer, ends: Sequence[int]) -> Asker:
    missing = [token for token in family.control_tokens if tokenizer.control_id(token) is None]
    if missing:
        raise OperatorError(f"{folder}: the tokenizer lacks {', '.join(missing)}, which the prompt needs.")
    if not stands_apart(family, tokenizer, profile.taxonomy):
        raise OperatorError(f"{folder}: the tokenizer joins words of the prompt with words of a message.")
    try:
        return family.asker(tokenizer, ends)
    except ValueError as error:
        raise OperatorError(f"{folder}: the checkpoint does not fit the family {profile.family}: {error}.") from error


def _gpus_for(profile: Profile) -> tuple[fit.Gpu, ...]:
    """The cards of this machine, or none for a profile that needs none. Raises OperatorError if one is missing."""
    gpus = () if profile.runs_on_cpu else fit.find_gpus()
    if not gpus and not profile.runs_on_cpu:
        raise OperatorError(
            f"{profile.name} needs a CUDA GPU, and nvidia-smi finds none. To try the server without one, use the"
            " profile pocket, a stand-in."
        )
    return gpus


def _check_fits(profile: Profile, network: Network | None, gpus: Sequence[fit.Gpu]) -> None:
    """Fail before a download, by the profile's network, and before minutes of loading, by the checkpoint's.

    vLLM decides which card it uses, and how it shares the model among several. So a machine passes here if one card is
    large enough, or if the profile uses several.
    """
    if gpus and network is not None and profile.engine.get("tensor_parallel_size", 1) == 1:
        fit.check_fits(profile, network, max(gpu.memory_bytes for gpu in gpus))


def _compare_templates(family: Family, profile: Profile, template: str | None) -> None:
    if template is None:
        log.warning("the checkpoint has no chat template: the prompt could not be compared with the official one")
        return
    found = differences(family, template, profile.taxonomy, images=profile.images)
    if found:
        log.error(
            "THE PROMPT DIFFERS from the checkpoint's own chat template in: %s. The model may have been trained with"
            " another prompt: do not rely on its verdicts before you know why.",
            "; ".join(found),
        )
