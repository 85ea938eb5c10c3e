"""What everything is about: conversations, policies, verdicts and errors, on the standard library alone."""
