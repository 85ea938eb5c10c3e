"""Starts an engine of vLLM's on the pocket model as this server would, but without its mends, until it is told to end.

    python -m tests.engine.bare_vllm FILE

Makes FILE when it is ready, and waits for a line on its input. Then it ends the engine at once, and itself.
"""

import asyncio
import os
import sys
from pathlib import Path


async def main() -> None:
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    from server.checkpoints.profile import load_profile

    profile = load_profile("pocket")
    arguments = {**profile.engine, "limit_mm_per_prompt": {"image": 0}, "max_model_len": 2048}
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=profile.model, **arguments))
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, Path(sys.argv[1]).touch)
    await loop.run_in_executor(None, sys.stdin.readline)
    engine.shutdown(timeout=1)


if __name__ == "__main__":
    # Plugins would install the mends. The model runs beside the scheduler, as it does in this server's engine.
    os.environ |= {"VLLM_PLUGINS": "", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
    asyncio.run(main())
