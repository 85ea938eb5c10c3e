"""Chat completions in every dialect: the request, how it is judged, and the common parts of the replies."""
