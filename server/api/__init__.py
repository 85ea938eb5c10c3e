"""The wire: one router for each dialect, and what they share."""
