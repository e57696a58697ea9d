"""One request to a daemon; its connection lasts as long as the answer is read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from typing import Any
from urllib.parse import urlsplit

from server.config import Config


@contextmanager
def request(
    url: str, config: Config, method: str, path: str, body: Any = None, seconds: float | None = None
) -> Iterator[HTTPResponse]:
    """The answer of the daemon at `url`, its body still to come; `body` is sent as JSON.

    It carries the key of `config`, or the token by which a daemon knows the user who runs it.

    `seconds` limits each wait; None sets no limit, because a large model may load for minutes. Raises OSError,
    HTTPException.
    """
    address = urlsplit(url)
    headers = {"Content-Type": "application/json"}
    if key := config.api_key or _own_token(url, config):
        headers["Authorization"] = f"Bearer {key}"
    connection = HTTPConnection(address.hostname or "", address.port, timeout=seconds)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        yield connection.getresponse()
    finally:
        connection.close()


def _own_token(url: str, config: Config) -> str:
    """The token that the daemon of this home wrote for its own user; "" for every other daemon."""
    try:
        record = json.loads(config.daemon_file.read_bytes())
        return str(record["token"]) if record["url"] == url else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""
