"""From a profile to a backend: find the checkpoint, read it, and refuse what does not agree before anything loads."""

import logging

from server import memory
from server.backends.base import Backend
from server.backends.vllm import VllmBackend
from server.checkpoint import locate, read_facts, verify
from server.profile import Network, Profile, ProfileError
from server.prompt import CONTROL_TOKENS
from server.settings import Settings
from server.template_check import differences
from server.tokenizer import PromptTokenizer

log = logging.getLogger(__name__)


def load_backend(settings: Settings, profile: Profile) -> Backend:
    """The local engine for `profile`, not yet started. Raises ProfileError with a message for the operator."""
    _check_machine(profile)
    log.info("reading the checkpoint %s", profile.model)
    folder = locate(profile)
    facts = read_facts(folder)
    try:
        tokenizer = PromptTokenizer.from_folder(folder)
    except Exception as error:  # tokenizers raises nothing more specific
        raise ProfileError(f"{folder}: its tokenizer cannot be used: {error}") from error
    verify(profile, facts, tokenizer.single_id)
    missing = [token for token in CONTROL_TOKENS if tokenizer.control_id(token) is None]
    if missing:
        raise ProfileError(f"{folder}: its tokenizer lacks {', '.join(missing)}, of which the prompt is made.")
    _check_machine(profile, facts.network)
    _compare_templates(profile, facts.chat_template)
    return VllmBackend(
        profile,
        folder,
        facts,
        tokenizer,
        minimum_mass=settings.minimum_verdict_mass,
        always_score_categories=settings.category_scores == "always",
    )


def _check_machine(profile: Profile, network: Network | None = None) -> None:
    """Fail before a download and before minutes of loading. `network` is the checkpoint's, once that is at hand."""
    if profile.runs_on_cpu:
        return
    gpus = memory.find_gpus()
    if not gpus:
        raise ProfileError(
            f"{profile.name} needs a CUDA GPU, and nvidia-smi finds none. The profile pocket needs none."
        )
    network = network or profile.network
    # Which card vLLM takes, and how it shares the model among several, is its own business: one card that is large
    # enough, or a profile that asks for several, is not stopped here.
    if network is not None and profile.engine.get("tensor_parallel_size", 1) == 1:
        memory.check_fits(profile, network, max(gpu.memory_bytes for gpu in gpus))


def _compare_templates(profile: Profile, template: str | None) -> None:
    if template is None:
        log.warning("the checkpoint brings no chat template; the prompt could not be compared with the official one")
        return
    found = differences(template, profile.taxonomy)
    if found:
        log.error(
            "THE PROMPT DIFFERS from the checkpoint's own chat template in: %s. The model may have been trained on"
            " other words than it is asked with: do not rely on its verdicts before you know why.",
            "; ".join(found),
        )
