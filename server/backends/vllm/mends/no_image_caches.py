"""vLLM keeps no processed pictures.

Why: vLLM keeps them twice, in the server's process and in the engine's, and the two drift apart when a request is
    rejected or cancelled after its pictures were processed. The next request with that picture then ends empty.
Where: every engine.
Upstream: vllm-project/vllm#46354 (open); vllm-project/vllm#51897 and vllm-project/vllm#46451 would mend it (closed).
Needed: tests/engine/test_mends.py::test_vllms_image_caches_still_drift_apart
Until: a picture of a rejected request reaches the engine with the next request that shows it.
"""

from typing import Any

ARGUMENTS: dict[str, Any] = {"mm_processor_cache_gb": 0}
"""Arguments of the engine."""
