"""A registry on loopback that takes pushes, with trouble on demand; raw HTTP, so that resets are real.

    with Taking() as registry:
        registry.script = lambda ask: "reset" if ask.method == "PATCH" and ask.index == 1 else None

The script is asked for each request, in order, and names one of the faults that `Taking._trouble` has, or gives a whole
answer as (status, headers). `kept` are the blobs by repository, `manifests` by repository and tag.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from tests.tokens import Tokens

Answer = tuple[int, dict[str, str]]


@dataclass(frozen=True)
class Ask:
    """A request; `index` counts those with its method."""

    method: str
    path: str
    index: int
    length: int
    authorization: str


@dataclass
class Taking:
    """The registry. `pieces`: it takes PATCH; `most`: bytes of a body that it takes; `mounts`: it mounts.

    With `tokens` it wants one of these, which `/token` gives.
    """

    pieces: bool = True
    most: int = 1 << 40
    mounts: bool = True
    tokens: Tokens | None = None
    script: Callable[[Ask], str | Answer | None] = lambda ask: None
    kept: dict[str, dict[str, bytes]] = field(default_factory=dict)
    manifests: dict[tuple[str, str], bytes] = field(default_factory=dict)
    uploads: dict[str, bytearray] = field(default_factory=dict)
    asked: list[Ask] = field(default_factory=list)

    def __enter__(self) -> Taking:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _do(self) -> None:
                with contextlib.suppress(ConnectionError):
                    registry._answer(self)

            do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = _do

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                """Clients break off what they need no more."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._lock = threading.Lock()
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.host = f"127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def count(self, method: str) -> int:
        return sum(ask.method == method for ask in self.asked)

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        method, authorization = handler.command, handler.headers.get("Authorization", "")
        with self._lock:
            ask = Ask(method, handler.path, self.count(method), length, authorization)
            self.asked.append(ask)
        if self.tokens and (answered := self._guard(handler, self.tokens, authorization, length)):
            return answered()
        trouble = self.script(ask)
        if isinstance(trouble, tuple):
            self._drain(handler, length)
            return self._send(handler, *trouble)
        if trouble:
            return self._trouble(handler, trouble, length)
        parts = urlsplit(handler.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if length > self.most:
            handler.close_connection = True
            return self._send(handler, 413, {})
        if match := re.fullmatch(r"/v2/(.+)/blobs/(sha256:[0-9a-f]{64})", parts.path):
            blob = self.kept.get(match[1], {}).get(match[2])
            return self._send(handler, 404 if blob is None else 200, {}, len(blob or b""))
        if match := re.fullmatch(r"/v2/(.+)/manifests/(.+)", parts.path):
            self.manifests[match[1], match[2]] = data = handler.rfile.read(length)
            return self._send(handler, 201, {"Docker-Content-Digest": digest(data)})
        if match := re.fullmatch(r"/v2/(.+)/blobs/uploads/(.*)", parts.path):
            return self._upload(handler, match[1], match[2], query, length)
        return self._send(handler, 404, {})

    def _guard(
        self, handler: BaseHTTPRequestHandler, tokens: Tokens, authorization: str, length: int
    ) -> Callable[[], None] | None:
        """The answer of the token server, or of a registry that wants a token; None for a request that has one."""
        if handler.path.startswith("/token"):
            with self._lock:
                status, body = tokens.issue(handler.path, authorization)
            return lambda: self._send(handler, status, {}, len(body), body)
        realm = f"http://{self.host}/token"
        with self._lock:
            wanted = tokens.challenge(handler.command, handler.path, authorization, realm)
        if not wanted:
            return None
        self._drain(handler, length)
        return lambda: self._send(handler, 401, wanted)

    def _upload(self, handler: BaseHTTPRequestHandler, name: str, id: str, query: dict[str, str], length: int) -> None:
        place = f"/v2/{name}/blobs/uploads/"
        if handler.command == "POST":
            blob = self.kept.get(query.get("from", ""), {}).get(query.get("mount", ""))
            if blob is not None and self.mounts:
                self.kept.setdefault(name, {})[query["mount"]] = blob
                return self._send(handler, 201, {})
            id = f"u{len(self.uploads)}"
            self.uploads[id] = bytearray()
            return self._send(handler, 202, {"Location": f"{place}{id}?state=x"})
        if id not in self.uploads:
            self._drain(handler, length)
            return self._send(handler, 404, {})
        data = self.uploads[id]
        if handler.command == "GET":
            return self._send(handler, 204, {"Location": f"{place}{id}", "Range": f"0-{max(0, len(data) - 1)}"})
        if handler.command == "PATCH":
            first = int(handler.headers["Content-Range"].partition("-")[0])
            if not self.pieces or first != len(data):
                self._drain(handler, length)
                return self._send(handler, 416 if self.pieces else 405, {})
            data += handler.rfile.read(length)
            return self._send(handler, 202, {"Location": f"{place}{id}", "Range": f"0-{len(data) - 1}"})
        data += handler.rfile.read(length)
        if digest(data) != query["digest"]:
            return self._send(handler, 400, {})
        self.kept.setdefault(name, {})[query["digest"]] = bytes(self.uploads.pop(id))
        return self._send(handler, 201, {})

    def _trouble(self, handler: BaseHTTPRequestHandler, kind: str, length: int) -> None:
        handler.close_connection = True
        if kind == "cut" and handler.command == "PATCH":  # half of the piece arrives, and is kept
            id = urlsplit(handler.path).path.rpartition("/")[2]
            self.uploads[id] += handler.rfile.read(length // 2)
        if kind == "forget":
            self.uploads.clear()
        if kind in ("forget", "html"):
            self._drain(handler, length)
            self._send(handler, 404 if kind == "forget" else 200, {"Content-Type": "text/html"})
            return
        if kind == "slow":
            time.sleep(0.2)
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.connection.close()  # a reset

    def _drain(self, handler: BaseHTTPRequestHandler, length: int) -> None:
        while length and (part := handler.rfile.read(min(length, 1 << 16))):
            length -= len(part)

    def _send(
        self, handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], length: int = 0, body: bytes = b""
    ) -> None:
        handler.send_response(status)
        for name, value in (headers | {"Content-Length": str(length)}).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)


def digest(data: bytes | bytearray) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
