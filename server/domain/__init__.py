"""The terms of everything else: conversations, policies, verdicts and errors. Imports only the standard library."""
