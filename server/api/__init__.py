"""The wire: one router for each dialect, and the parts that they share."""
