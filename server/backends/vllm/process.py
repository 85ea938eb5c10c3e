"""Which mends run in which process. vLLM runs `prepare` first in each of its own, as a general plugin.

the server's, before the engine starts   `prepare_server`, and while it starts bound_threads (backend.py)
the server's, for each engine            tapped_outputs (client.py)
the engine's                             `of_the_engine`
the engine's on CPUs                     `of_an_engine_on_cpus` too
every one of vLLM's                      `of_every_process`
every one that imports torch             torch_companions, early_words (pyproject.toml)
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from server.backends.vllm.device import is_cpu
from server.backends.vllm.mends import (
    model_beside_scheduler,
    no_image_caches,
    nothing_compiled,
    private_sockets,
    silent_end,
    spawned_processes,
)
from server.backends.vllm.mends.death_with_server import SERVER_PID

PLUGIN = "guard_engine_process"
"""Name of `prepare` among vLLM's plugins, as pyproject.toml gives it."""

ARGUMENTS = no_image_caches.ARGUMENTS
"""Arguments of every engine, whatever a profile says."""


class Mend(Protocol):
    """A module of mends/."""

    def install(self) -> None: ...


def prepare_server(sockets: Path, *, on_cpu: bool, eager: bool) -> None:
    """Prepare the environment that the engine's processes read as they start.

    `sockets` is a folder that nobody else may enter. `eager` says that the model runs as it is written.
    """
    os.environ[SERVER_PID] = str(os.getpid())
    if (chosen := os.environ.get("VLLM_PLUGINS")) is not None and PLUGIN not in chosen.split(","):
        os.environ["VLLM_PLUGINS"] = ",".join(filter(None, [chosen, PLUGIN]))
    private_sockets.install(sockets)
    spawned_processes.install()
    silent_end.install()
    if on_cpu:
        model_beside_scheduler.install()
        if eager:
            nothing_compiled.install()


def prepare() -> None:
    """Install what this process of vLLM's needs."""
    for mend in of_this_process():
        mend.install()


def of_this_process() -> Iterator[Mend]:
    server_pid = int(os.environ.get(SERVER_PID, "0"))
    if server_pid and server_pid != os.getpid():
        yield from of_the_engine()
        if is_cpu():
            yield from of_an_engine_on_cpus()
    yield from of_every_process()


def of_the_engine() -> Iterator[Mend]:
    """In this server's engine, which dies with it."""
    from server.backends.vllm.mends import death_with_server, own_process_group, private_rendezvous

    yield from (death_with_server, own_process_group, private_rendezvous)


def of_an_engine_on_cpus() -> Iterator[Mend]:
    """In this server's engine only, where nobody asks for what it then lacks."""
    from server.backends.vllm.mends import asked_logprobs, cpu_norm, kept_memory, last_positions, step_sizes

    yield from (kept_memory, cpu_norm, last_positions, step_sizes, asked_logprobs)


def of_every_process() -> Iterator[Mend]:
    from server.backends.vllm.mends import contiguous_patches, picture_bytes, shared_tokenizers

    yield shared_tokenizers
    if is_cpu():
        yield from (contiguous_patches, picture_bytes)


def arguments_here() -> dict[str, Any]:
    """Arguments of the engine that suit where it computes; a profile may say otherwise."""
    if not is_cpu():
        return {}
    from server.backends.vllm.mends import cpu_norm, step_sizes

    return cpu_norm.ARGUMENTS | step_sizes.ARGUMENTS
