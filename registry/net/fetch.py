"""Small answers, read whole: a hub's description of a repository, headers, small files. Retried; not verified here."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from http.client import HTTPException, HTTPMessage
from typing import NamedTuple, TypeVar

from registry.errors import RegistryError, SourceUnavailable
from registry.net.locate import Locator, Remote, interval, strong
from registry.net.network import Network
from registry.net.retries import Passing, again, given_up, requested_wait
from registry.net.transport import HttpClient, Response

_STEP = 1 << 20


class Measured(NamedTuple):
    """The length of a file in bytes, and a text that changes with its content ("" where the server gives none)."""

    size: int
    mark: str


Result = TypeVar("Result")


class Fetcher:
    """Requests one after the other, over connections that are kept; for one thread."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._client = HttpClient(network)
        self._locators: dict[str, Locator] = {}

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def document(
        self,
        url: str,
        name: str,
        limit: int,
        refused: Callable[[int, HTTPMessage], RegistryError],
        accept: str = "*/*",
    ) -> bytes:
        """The body at `url`, of unknown size; `accept` lists media types.

        Raises SourceUnavailable, also beyond `limit` bytes, and `refused`.
        """
        remote = Remote(url, -1, name, refused)

        def read() -> bytes:
            data = _read(Locator(remote, self._network).open(self._client, {"Accept": accept}), limit + 1)
            if len(data) > limit:
                raise SourceUnavailable(f"the source's answer for {name} is longer than it may be")
            return data

        return self._persist(read, remote)

    def measure(self, remote: Remote) -> Measured:
        """The length of a file that no list of the source tells, and the mark of its content.

        Raises AccessDenied, ModelNotFound, SourceUnavailable.
        """

        def read() -> Measured:
            reply = Locator(remote, self._network).open(self._client, {"Range": "bytes=0-0"})
            whole = reply.headers.get("Content-Length" if reply.status == 200 else "Content-Range", "")
            length, headers = whole.rpartition("/")[2].strip(), reply.headers
            reply.discard()
            if not re.fullmatch(r"[0-9]{1,19}", length):
                raise SourceUnavailable(f"`{remote.host}` does not say how long `{remote.name}` is")
            return Measured(int(length), strong(headers.get("ETag")) or headers.get("Last-Modified") or "")

        return self._persist(read, remote)

    def part(self, remote: Remote, start: int, end: int) -> bytes:
        """Bytes start … end of a file. Raises AccessDenied, ModelNotFound, SourceUnavailable."""
        if start == end:
            return b""
        locator = self._locators.setdefault(remote.url, Locator(remote, self._network))
        whole = (start, end) == (0, remote.size)

        def read() -> bytes:
            reply = locator.open(self._client, {} if whole else {"Range": f"bytes={start}-{end - 1}"})
            at, stop = interval(reply, start, end, remote.size)
            if stop < end:
                raise Passing(f"the source sends less than bytes {start}-{end - 1}")
            data = _read(reply, end - at)
            if len(data) < end - at:
                raise Passing("the connection was closed early")
            return data[start - at :]

        return self._persist(read, remote)

    def _persist(self, read: Callable[[], Result], remote: Remote) -> Result:
        retries, failures = self._network.fetches, 0
        while True:
            try:
                with self._network.sign_of_life(remote.name, remote.host):
                    return read()
            except (Passing, OSError, HTTPException) as problem:
                self._client.close()
                failures += 1
                wait = requested_wait(problem)
                if failures >= retries.limit(problem, self._network.answered.is_set()) or wait > retries.patience:
                    raise given_up(remote.name, remote.host, problem, failures, retries.patience) from problem
                self._network.notice(again(remote.name, problem))
                time.sleep(max(wait, retries.pause(failures)))
            except RegistryError:
                self._client.close()
                raise


def _read(reply: Response, most: int) -> bytes:
    """The body, no more than `most` bytes of it."""
    data = bytearray()
    while len(data) < most:
        part = bytearray(min(_STEP, most - len(data)))
        count = reply.readinto(memoryview(part))
        if not count:
            break
        data += memoryview(part)[:count]
    reply.discard()
    return bytes(data)
