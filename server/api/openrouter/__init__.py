"""OpenRouter's dialect, below /api/v1: chat completions, the model, keys, credits and generations."""
