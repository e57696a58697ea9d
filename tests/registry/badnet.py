"""Two HTTP origins, a hub that redirects and a CDN that sends, with trouble on demand: raw sockets, so that resets,
cuts at a byte, lies in headers and silence are the real thing.

    with BadNet(data) as net:
        net.script = lambda request: "reset" if request.index == 3 else None
        Download(net.remote, Network())

The script is asked once for each request for bytes, in the order of arrival, and names one of FAULTS.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from registry.net.locate import Remote

# Cut, reset and stall come after a random part of the body; slow is 100 bytes every 10 ms. In the other answers this is
# wrong: flip, a bit of the body; ignore, it is the whole file; shifted or total, the numbers in Content-Range; short, a
# third of the range; longer, a Content-Length 10 bytes too large; noheader, no Content-Range; garbage, no HTTP;
# unavailable, 503; busy, 429; expired, 403 and a new signature; etag, gzip, chunked, the header; close, the body ends
# with the connection.
FAULTS = (
    "reset", "cut", "flip", "ignore", "shifted", "total", "short", "longer", "noheader", "garbage", "unavailable",
    "busy", "expired", "etag", "chunked", "close", "gzip", "stall", "slow",
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    """A request as it came: `index` counts those of its origin; header names in lower case."""

    origin: str
    index: int
    target: str
    headers: dict[str, str]

    @property
    def span(self) -> tuple[int, int] | None:
        """First byte and end of the range that is asked for."""
        if "range" not in self.headers:
            return None
        first, _, last = self.headers["range"].removeprefix("bytes=").partition("-")
        return int(first), int(last) + 1


class BadNet:
    """The pair. `direct`: the hub sends the bytes itself; `locations`: redirects to give instead of that to the CDN."""

    def __init__(self, data: bytes, *, direct: bool = False, tls: ssl.SSLContext | None = None, seed: int = 0) -> None:
        self.data, self.direct, self.tls = data, direct, tls
        self.script: Callable[[Request], str | None] = lambda request: None
        self.refuse: Callable[[Request], bytes | None] = lambda request: None
        self.locations: list[str] = []
        self.signature = 1
        self.linked = hashlib.sha256(data).hexdigest()
        self.requests: list[Request] = []
        self.sent = 0
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    @property
    def remote(self) -> Remote:
        return Remote(f"{self.url}/org/repo/resolve/abc/model.safetensors", len(self.data), "model.safetensors")

    def of(self, origin: str) -> list[Request]:
        return [request for request in self.requests if request.origin == origin]

    def __enter__(self) -> BadNet:
        self._listeners = {origin: socket.create_server(("127.0.0.1", 0), backlog=64) for origin in ("hub", "cdn")}
        scheme = "https" if self.tls else "http"
        self.url, self.cdn = (f"{scheme}://127.0.0.1:{s.getsockname()[1]}" for s in self._listeners.values())
        for origin, listener in self._listeners.items():
            self._start(self._accept, listener, origin)
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        with self.lock:
            for sock in (*self._listeners.values(), *self.sockets):
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for listener in self._listeners.values():
            listener.close()

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket, origin: str) -> None:
        with contextlib.suppress(OSError):
            while not self.closing.is_set():
                self._start(self._serve, listener.accept()[0], origin)

    def _serve(self, sock: socket.socket, origin: str) -> None:
        sock.settimeout(30)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.tls:
                sock = self.tls.wrap_socket(sock, server_side=True)
            with self.lock:
                self.sockets.add(sock)
            reader = sock.makefile("rb")
            while not self.closing.is_set() and (line := reader.readline()):
                fields = {}
                while (header := reader.readline().strip()) and b":" in header:
                    name, _, value = header.decode().partition(":")
                    fields[name.lower()] = value.strip()
                with self.lock:
                    request = Request(origin, len(self.of(origin)), line.split()[1].decode(), fields)
                    self.requests.append(request)
                if not self._answer(sock, request):
                    break
            reader.close()
        with self.lock:
            self.sockets.discard(sock)
        sock.close()

    def _answer(self, sock: socket.socket, request: Request) -> bool:
        """Whether the connection stays open."""
        if (refusal := self.refuse(request)) is not None:
            sock.sendall(refusal)
            return True
        if request.origin == "hub" and not self.direct:
            location = self.locations.pop(0) if self.locations else f"{self.cdn}/blob?sig={self.signature}"
            sock.sendall(reply("302 Found", {"Location": location, "X-Linked-ETag": f'"{self.linked}"',
                                             "X-Linked-Size": str(len(self.data))}, b"Found"))  # fmt: skip
            return True
        if request.origin == "cdn" and not request.target.endswith(f"?sig={self.signature}"):
            sock.sendall(reply("403 Forbidden", {}, b"<Error>expired</Error>"))
            return True
        return self._send(sock, request, self.script(request))

    def _send(self, sock: socket.socket, request: Request, fault: str | None) -> bool:
        canned = {
            "garbage": b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
            "unavailable": reply("503 Service Unavailable", {}, b"no"),
            "busy": reply("429 Too Many Requests", {"Retry-After": "0"}, b"slow down"),
        }
        if fault in canned:
            sock.sendall(canned[fault])
            return fault != "garbage"
        if fault == "expired":
            self.signature += 1
            sock.sendall(reply("403 Forbidden", {}, b"expired"))
            return True
        first, end = request.span or (0, len(self.data))
        head, body = self._body(first, end, request, fault)
        if fault in ("reset", "cut", "stall"):
            body = body[: self.random.randrange(len(body))]
        with self.lock:
            self.sent += len(body)
        sock.sendall(head)
        for at in range(0, len(body), 100 if fault == "slow" else len(body) or 1):
            sock.sendall(body[at : at + 100] if fault == "slow" else body)
            self.closing.wait(0.01 if fault == "slow" else 0)
        if fault == "stall":
            self.closing.wait(5)
        if fault == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return fault not in ("reset", "cut", "stall", "longer", "close")

    def _body(self, first: int, end: int, request: Request, fault: str | None) -> tuple[bytes, bytes]:
        """Head and body of the answer, with what `fault` does to them."""
        total = len(self.data)
        partial = request.span is not None and fault != "ignore"
        if not partial:
            first, end = 0, total
        if fault == "short" and partial:
            end = first + max(1, (end - first) // 3)
        body = self.data[first:end]
        content_range, length = f"bytes {first}-{end - 1}/{total}", len(body)
        fields = {"ETag": '"changed"' if fault == "etag" else f'"{self.linked[:8]}"', "Content-Range": content_range}
        if fault == "flip":
            at = self.random.randrange(len(body))
            body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        elif fault == "shifted":
            fields["Content-Range"] = f"bytes {first + 1}-{end}/{total}"
        elif fault == "total":
            fields["Content-Range"] = f"bytes {first}-{end - 1}/{total + 1}"
        elif fault == "longer":
            length += 10
        elif fault == "gzip":
            fields["Content-Encoding"] = "gzip"
        if not partial or fault == "noheader":
            del fields["Content-Range"]
        if fault == "chunked":
            fields["Transfer-Encoding"] = "chunked"
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        elif fault == "close":
            fields["Connection"] = "close"
        else:
            fields["Content-Length"] = str(length)
        return head("206 Partial Content" if partial else "200 OK", fields), body


def head(status: str, fields: dict[str, str]) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode()


def reply(status: str, fields: dict[str, str], body: bytes) -> bytes:
    return head(status, {**fields, "Content-Length": str(len(body))}) + body
