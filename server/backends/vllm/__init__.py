"""vLLM as the local engine."""
