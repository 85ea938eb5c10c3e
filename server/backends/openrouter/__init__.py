"""OpenRouter as a backend: the one room from which what callers wrote may leave this machine."""
