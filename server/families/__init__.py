"""Families of guard models: how each is asked, and how its answer is read."""
