"""Chat completions, whatever the dialect: the request, how it is judged, and what replies have in common."""
