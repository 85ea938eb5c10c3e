"""Checks that a checkpoint is the one that its profile describes."""

import logging
from collections.abc import Callable, Mapping

from server.checkpoints.facts import CheckpointFacts
from server.checkpoints.profile import Profile
from server.domain.errors import OperatorError

log = logging.getLogger(__name__)

LONG_CONTEXT_VARIABLE = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
"""Set to "1" before the engine starts if `exceeds_checkpoint` holds, else vLLM (0.32, 0.33) refuses the context."""


def verify(
    profile: Profile, facts: CheckpointFacts, words: Mapping[str, str], token_id: Callable[[str], int | None]
) -> None:
    """Refuse a checkpoint that is not the one the profile describes.

    `words` must be single tokens; their keys are those of [tokens]. `token_id` gives the id of a text that the
    checkpoint's tokenizer writes as a single token, else None. Raises OperatorError with every mismatch. Logs a warning
    if the profile allows a longer context than the checkpoint.
    """
    mismatches = []
    if profile.vocabulary_size != facts.vocabulary_size:
        mismatches.append(
            f"the profile expects a vocabulary of {profile.vocabulary_size}, the checkpoint has {facts.vocabulary_size}"
        )
    for key, word in words.items():
        expected, found = profile.tokens[key], token_id(word)
        if found != expected:
            actual = "has no single token for it" if found is None else f"has {found}"
            mismatches.append(
                f"the profile expects token {expected} for {word!r} (tokens.{key}), the tokenizer {actual}"
            )
    if profile.images and facts.tokens_per_tile is None:
        mismatches.append("the checkpoint has no vision encoder: set images = false")
    if exceeds_checkpoint(profile, facts):
        excess = (
            f"the profile asks for {profile.context_tokens} tokens of context, the checkpoint allows "
            f"{facts.context_tokens}"
        )
        if profile.context_beyond_checkpoint:
            log.warning("%s: %s: verdicts on longer conversations may be wrong", profile.name, excess)
        else:
            mismatches.append(f"{excess}: set context_tokens to at most {facts.context_tokens}")
    if mismatches:
        lines = "".join(f"\n  - {mismatch}" for mismatch in mismatches)
        raise OperatorError(f"{profile.name}: profile and checkpoint do not agree:{lines}")


def exceeds_checkpoint(profile: Profile, facts: CheckpointFacts) -> bool:
    """Whether the profile's context is longer than the checkpoint's positions allow (see LONG_CONTEXT_VARIABLE)."""
    return facts.context_tokens is not None and profile.context_tokens > facts.context_tokens


def fits_one_chunk(profile: Profile, facts: CheckpointFacts) -> bool:
    """Whether the checkpoint cuts attention at a length that the profile's context never exceeds."""
    return facts.attention_chunk is not None and profile.context_tokens <= facts.attention_chunk
