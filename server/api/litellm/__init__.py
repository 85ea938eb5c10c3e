"""LiteLLM's dialect."""
