"""Backends that can judge a case: the local engine, and any other with the same interface (base.py)."""
