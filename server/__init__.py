"""llama-guard-server: Llama Guard 4 behind the endpoints that people already call."""

__version__ = "0.1.0"
