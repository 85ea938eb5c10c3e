"""The address of a running server, as people type it."""

from urllib.parse import urlsplit

from server.domain.errors import OperatorError


def base_url(url: str) -> str:
    """The URL of the server's API, with a slash at its end. Raises OperatorError."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise OperatorError(
            f"--url {url}: is not a URL such as http://127.0.0.1:8000. It must begin with http:// or https://."
        )
    return url.rstrip("/").removesuffix("/v1") + "/v1/"
