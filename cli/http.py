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
    """The answer of the daemon at `url`, its body still to come; `body` is sent as JSON, with the key of `config`.

    `seconds` limits each wait; None sets no limit, because a large model may load for minutes. Raises OSError,
    HTTPException.
    """
    address = urlsplit(url)
    headers = {"Content-Type": "application/json"}
    if config.api_key:
        headers["Authorization"] = f"Bearer {config.api_key}"
    connection = HTTPConnection(address.hostname or "", address.port, timeout=seconds)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        yield connection.getresponse()
    finally:
        connection.close()
