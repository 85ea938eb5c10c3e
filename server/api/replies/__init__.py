"""What answers look like, for the OpenAPI document alone: answers are made without any of it."""
