"""Changes to vLLM, one a file."""
