"""Prompts that must never change, and the vocabularies that they are written in."""
