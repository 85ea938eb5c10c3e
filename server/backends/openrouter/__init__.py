"""OpenRouter as a backend: the only package from which content of callers may leave this machine."""
