"""OpenRouter's dialect, below /api/v1: chat completions, the model, and what is told of keys and generations."""
