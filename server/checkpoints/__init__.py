"""Model profiles and checkpoints on disk."""
