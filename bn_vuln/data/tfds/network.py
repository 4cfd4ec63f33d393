"""Check of which hosts can be reached, done well within a second."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from urllib.parse import urlsplit

SECONDS = 0.5
PORTS = {"http": 80, "ftp": 21}


def host(url: str) -> str:
    """The host of a URL; that of Google's storage for gs://."""
    parts = urlsplit(url)
    return "storage.googleapis.com" if parts.scheme == "gs" else parts.hostname or url


def unreachable(urls: Iterable[str], seconds: float = SECONDS) -> list[str]:
    """Find the hosts that do not answer. All are asked at once.

    Args:
        urls: URLs of files.
        seconds: Time limit.

    Returns:
        Hosts without an answer, in the order of the URLs.
    """
    asked = {host(url): url for url in urls}
    answered: set[str] = set()

    def ask(name: str, url: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            _connect(url, seconds)
            answered.add(name)

    # Daemons, because looking up a name has no time limit of its own.
    threads = [threading.Thread(target=ask, args=item, daemon=True) for item in asked.items()]
    end = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return [name for name in asked if name not in answered]


def _connect(url: str, seconds: float) -> None:
    """Raise `OSError` where a URL's host does not answer, or its proxy refuses it."""
    parts = urlsplit(url)
    name = host(url)
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(name):
        request = urllib.request.Request(f"{parts.scheme}://{name}/", method="HEAD")
        try:  # only a request shows whether a proxy lets it through
            urllib.request.build_opener().open(request, timeout=seconds).close()
        except urllib.error.HTTPError as error:
            # Any other answer, such as 404, is the host's own.
            if error.code in (407, 502, 503, 504):
                raise
        return
    socket.create_connection((name, parts.port or PORTS.get(parts.scheme, 443)), timeout=seconds).close()
