"""HTTP, whatever the dialect."""
