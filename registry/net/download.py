"""A file from a source, fetched in parallel ranges and delivered in file order, from a bounded window of buffers.

Each thread fetches one piece of the file after the other by range requests, straight into a buffer that is used again.
Pieces grow and shrink with the speed: so a cut on a slow link loses little.
Pieces are assigned in file order and each needs a free buffer, so a consumer that stops reading stops the transfer
after one window. The first bytes of a piece are delivered before the piece is whole. A range that is cut, stalls or is
refused for a while is resumed where it was, after a pause. The first request is made by one thread alone: it finds the
CDN; and where the source ignores ranges, this thread reads the file front to back.

    with Download(remote, network, start=position.offset) as chunks:
        for chunk in chunks:  # a memoryview, valid until the next turn
            …

Nothing here checks content: wrap it in `registry.net.verify.Verified`.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException

from registry.net.locate import Locator, Remote, interval
from registry.net.network import LONG_SECONDS, Network
from registry.net.retries import Passing, again, given_up, requested_wait
from registry.net.transport import HttpClient, Response
from registry.net.window import FilePiece, Window

MIB = 1 << 20
# Bytes. After a try that brought at least this much, failures in a row are counted from one again.
PROGRESS = 64 * 1024
# Bytes of the smallest and of the largest read. Between them the speed decides: a read takes 50 to 200 ms.
_SLICES = (64 * 1024, MIB)


@dataclass(slots=True, eq=False)
class _Body:
    """An answer with bytes `at` … `end` of the file still to come; `whole`: the answer is the whole file, no range."""

    reply: Response
    at: int
    end: int
    whole: bool


class _RangesIgnored(Passing):
    """The source sends the whole file in answer to a request for a part of it."""


class Download:
    """Iterator over the bytes of `remote` from `start` on, in order, as memoryviews (uint8, read and write).

    A view is valid until the next one is asked for, then its buffer is used again: copy what must stay. The transfer
    begins when this is made; `close` (or leaving the `with` block) ends all of it at once, whatever it waits for.
    Iteration is for one thread. `parallel`: number of connections. `piece`: bytes of a range. Memory: (parallel + 2) ×
    piece, at most `network.window`.

    Iteration raises AccessDenied, ModelNotFound, and SourceUnavailable once a piece has failed too often in a row
    without progress (`network.downloads`); what had arrived before the gap is delivered first.
    """

    def __init__(
        self, remote: Remote, network: Network, start: int = 0, *, parallel: int = 8, piece: int = 8 * MIB
    ) -> None:
        self.remote, self.network = remote, network
        piece = min(piece, network.window // 3)
        self._parallel = max(1, min(parallel, network.window // piece - 2))
        self.window = Window(start, remote.size, piece, self._parallel + 2, network.downloads)
        self._locator = Locator(remote, network)
        self._retries = network.downloads
        self._quiet_until = 0.0
        self._silent_until = 0.0
        self._seen, self._since = 0, time.monotonic()
        self._problem: BaseException | None = None
        self._clients: list[HttpClient] = []
        self._threads: list[threading.Thread] = []
        if start < remote.size:
            self._start_threads(1)

    @property
    def received(self) -> int:
        """Bytes that have arrived so far, delivered or not."""
        return self.window.received

    def __iter__(self) -> Iterator[memoryview]:
        return self

    def __next__(self) -> memoryview:
        window = self.window
        with window.changed:
            while True:
                if window.closed.is_set() and self._problem is None:
                    raise ValueError("read from a closed download")
                if chunk := window.take() if self._problem is None else window.take(1):
                    return chunk
                if window.position == window.size:
                    raise StopIteration
                if self._problem is not None:
                    raise self._problem
                self._wait()

    def _wait(self) -> None:
        """Wait for bytes, and tell the user once where none have come for a long time. `changed` is held."""
        window, now = self.window, time.monotonic()
        if window.received != self._seen:
            self._seen, self._since = window.received, now
        elif now - self._since >= LONG_SECONDS:
            self._since = math.inf
            host, name = self.remote.host, self.remote.name
            silent = "has sent nothing for some time" if window.received else "has not answered yet"
            self.network.notice(f"`{host}` {silent}: waiting for `{name}`")
        window.changed.wait(LONG_SECONDS)

    def __enter__(self) -> Download:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all transfers and their threads. Views that were handed out stay readable, their content does not."""
        self._end()
        for thread in self._threads:
            thread.join()

    def _end(self) -> None:
        self.window.close()
        with self.window.changed:
            clients = list(self._clients)
        for client in clients:
            client.abort()

    def _start_threads(self, count: int) -> None:
        """Start `count` more threads."""
        with self.window.changed:
            if self.window.closed.is_set():
                return
            for _ in range(count):
                client = HttpClient(self.network)
                name = f"download-{len(self._threads)}"
                thread = threading.Thread(target=self._work, args=(client,), name=name, daemon=True)
                self._clients.append(client)
                self._threads.append(thread)
                thread.start()

    def _work(self, client: HttpClient) -> None:
        worker = _Worker(self, client)
        try:
            while piece := self.window.assign(client.interrupt):
                worker.fill(piece)
        except BaseException as problem:
            with self.window.changed:
                if not self.window.closed.is_set():
                    self._problem = problem
            self._end()
        finally:
            client.close()

    # The methods below are called by the workers.

    @property
    def alone(self) -> bool:
        """Whether there is one worker only: before the first answer, and where the source ignores ranges."""
        return len(self._threads) == 1

    def open(self, client: HttpClient, start: int, end: int, whole: bool) -> _Body:
        """A body that covers `start`; at most to `end`, unless the source ignores ranges and `whole` allows it.

        Raises what `Locator.open` does.
        """
        self.window.closed.wait(max(0.0, self._quiet_until - time.monotonic()))
        size = self.remote.size
        headers = {} if (start, end) == (0, size) else {"Range": f"bytes={start}-{end - 1}"}
        reply = self._locator.open(client, headers)
        at, stop = interval(reply, start, end, size)
        if reply.status == 200 and headers and not whole:
            raise _RangesIgnored("the source ignores ranges")
        if self.alone and reply.status == 206:
            self._start_threads(min(self._parallel - 1, self.window.unassigned))
        return _Body(reply, at, stop, reply.status == 200)

    def pause(self, problem: Exception, failures: int, wait: float) -> None:
        """Wait before another try, longer each time. Where a source asks for `wait` seconds, all threads wait."""
        now = time.monotonic()
        if failures > 1:
            self._locator.forget()
            if now >= self._silent_until:  # the other threads meet the same trouble: one notice is enough
                self._silent_until = now + self._retries.silence
                self.network.notice(again(self.remote.name, problem))
        self._quiet_until = max(self._quiet_until, now + wait)
        self.window.closed.wait(max(self._retries.pause(failures), self._quiet_until - now))


class _Worker:
    """One thread's work: fill pieces, over one connection that is kept."""

    def __init__(self, download: Download, client: HttpClient) -> None:
        self._download, self._client = download, client
        self._window, self._limiter = download.window, download.network.limiter
        self._body: _Body | None = None
        self._ignored = 0
        self._largest = min(_SLICES[1], int(self._limiter.rate / 20) + 1024) if self._limiter else _SLICES[1]
        self._slice = self._smallest = min(_SLICES[0], self._largest)

    def fill(self, piece: FilePiece) -> None:
        """Fetch all of `piece`, trying again after failures; raises a RegistryError after too many in a row."""
        failures, network = 0, self._download.network
        while piece.have < piece.end and not self._window.closed.is_set():
            before = piece.have
            try:
                self._receive(piece)
            except (Passing, OSError, HTTPException) as problem:
                self._body = None
                self._client.close()
                if self._window.closed.is_set():
                    return
                failures = 1 if piece.have - before >= PROGRESS else failures + 1
                wait, retries = requested_wait(problem), network.downloads
                begun = self._window.received > 0
                if failures >= retries.limit(problem, network.answered.is_set(), begun) or wait > retries.patience:
                    remote = self._download.remote
                    raise given_up(remote.name, remote.host, problem, failures, retries.patience) from problem
                self._download.pause(problem, failures, wait)

    def _receive(self, piece: FilePiece) -> None:
        """Open what is missing and read until the piece or the body ends. Raises what `Locator.open` does."""
        body = self._body
        if body is None or body.at > piece.have or body.end <= piece.have:
            body = self._body = self._open(piece)
        while piece.have < min(piece.end, body.end):
            skip = piece.have - body.at
            if skip:
                # Unwanted bytes go elsewhere, because the free memory of the piece may be a single byte.
                self._read(body, memoryview(bytearray(min(skip, self._slice))))
            else:
                self._window.arrived(piece, self._read(body, self._window.room(piece, self._slice)))
        if body.at == body.end or not body.whole:
            # A body that does not end here is of a piece whose second half another worker took over.
            body.reply.discard()
            self._body = None

    def _open(self, piece: FilePiece) -> _Body:
        """A range for the rest of the piece; the whole file from a source that has ignored a range before."""
        whole = self._ignored > 0 and self._download.alone
        try:
            return self._download.open(self._client, piece.have, piece.end, whole)
        except _RangesIgnored:
            self._ignored += 1
            raise

    def _read(self, body: _Body, buffer: memoryview) -> int:
        """Receive at most `len(buffer)` bytes, then wait as long as the rate limit wants; the number of bytes."""
        started = time.monotonic()
        count = body.reply.readinto(buffer)
        if not count:
            raise ConnectionResetError("the connection was closed early")
        body.at += count
        seconds = time.monotonic() - started
        if seconds < 0.05:
            self._slice = min(self._slice * 2, self._largest)
        elif seconds > 0.2:
            self._slice = max(self._slice // 2, self._smallest)
        if self._limiter:
            self._window.closed.wait(self._limiter.take(count))
        return count
