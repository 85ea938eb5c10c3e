"""How vLLM is set up: its environment variables, and the arguments of the engine."""

import os
from pathlib import Path
from typing import Any

from server.backends.vllm.mends import early_words
from server.backends.vllm.process import ARGUMENTS, arguments_here, prepare_server
from server.checkpoints.profile import Profile
from server.checkpoints.verify import LONG_CONTEXT_VARIABLE


def prepare_environment(profile: Profile, sockets: Path) -> None:
    """Set what vLLM reads from the environment, in this process and in the engine's.

    `sockets` is a folder that nobody else may enter.
    """
    prepare_server(sockets, on_cpu=profile.runs_on_cpu, eager=bool(profile.engine.get("enforce_eager")))
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"  # the checkpoint lies on this disk by now
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # A newcomer should be able to read the console; whoever looks for a fault sets these otherwise.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    early_words.install()
    if profile.context_beyond_checkpoint:
        os.environ[LONG_CONTEXT_VARIABLE] = "1"


def engine_arguments(profile: Profile, folder: Path, *, one_chunk: bool) -> dict[str, Any]:
    """Keyword arguments of vLLM's AsyncEngineArgs for the checkpoint in `folder`.

    `one_chunk` says that the checkpoint cuts attention, at a length that no context of this profile passes.
    """
    arguments = {**arguments_here(), **profile.engine}
    if one_chunk:
        # Equal to attention in chunks while there is but one of them, and it spares vLLM a second kind of KV cache.
        overrides = dict(arguments.get("hf_overrides", {}))
        overrides["text_config"] = {**overrides.get("text_config", {}), "attention_chunk_size": None}
        arguments["hf_overrides"] = overrides
    return {
        # The one default that a profile may change, to measure without the cache.
        "enable_prefix_caching": True,
        **arguments,
        "model": str(folder),
        "max_model_len": profile.context_tokens,
        # A picture may be shown on two grounds, and with and without its colour profile.
        "limit_mm_per_prompt": {"image": 4 * profile.image_limit},
        **ARGUMENTS,
        # The checkpoint's own temperature and top_p are for chat, and would make verdicts random.
        "generation_config": "vllm",
        "scheduling_policy": "priority",
        "enable_log_requests": False,
        "disable_log_stats": False,
        "trust_remote_code": False,
        "use_tqdm_on_load": False,
    }
