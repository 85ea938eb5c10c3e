"""From a conversation to a verdict."""
