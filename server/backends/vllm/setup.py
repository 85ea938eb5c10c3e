"""How vLLM is set up: its environment variables, and the arguments of the engine."""

import os
from pathlib import Path
from typing import Any

from server.backends.vllm.process import PLUGIN, SERVER_PID, arguments_here
from server.checkpoints.profile import Profile
from server.checkpoints.verify import LONG_CONTEXT_VARIABLE


def prepare_environment(profile: Profile, sockets: Path) -> None:
    """Set what vLLM reads from the environment, in this process and in the engine's.

    `sockets` is a folder that nobody else may enter: vLLM's sockets in it are open to all.
    """
    os.environ[SERVER_PID] = str(os.getpid())
    # vLLM forks on CUDA unless told otherwise. A forked process believes that its plugins have run already, so it
    # would not be tied to this one's life; and forking a process with threads and an event loop is asking for it.
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    if (chosen := os.environ.get("VLLM_PLUGINS")) is not None and PLUGIN not in chosen.split(","):
        os.environ["VLLM_PLUGINS"] = ",".join(filter(None, [chosen, PLUGIN]))
    os.environ["VLLM_RPC_BASE_PATH"] = str(sockets)
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"  # the checkpoint lies on this disk by now
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if profile.runs_on_cpu:
        # Or vLLM gives the model on a CPU a third process of its own, as it never does on one GPU: it takes seconds
        # to start and 0.6 GiB, and each step of the engine waits for messages to it and back.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        if profile.engine.get("enforce_eager"):
            # vLLM would still compile the ranking of tokens, which mends/asked_logprobs.py does without: that takes
            # seconds and a C++ compiler.
            os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")
    # A newcomer should be able to read the console; whoever looks for a fault sets these otherwise.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # What an engine still holds that is ended at once (see close), multiprocessing tidies up, and would say so.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning,ignore:resource_tracker:UserWarning")
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
        # vLLM's two image caches drift apart when a request is rejected or cancelled after its images were
        # processed; the next request with that image then ends empty.
        "mm_processor_cache_gb": 0,
        # The checkpoint's own temperature and top_p are for chat, and would make verdicts random.
        "generation_config": "vllm",
        "scheduling_policy": "priority",
        "enable_log_requests": False,
        "disable_log_stats": False,
        "trust_remote_code": False,
    }
