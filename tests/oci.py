"""A registry on loopback: the routes of Ollama's registry and of OCI's, with tokens, redirects to another port, faults.

    with Registry() as registry:
        registry.add("library/tale", "latest", [(OLLAMA + "model", data), (OLLAMA + "params", b"{}")])

Blobs of more than 64 KiB come by a redirect from `cdn_url`, which wants no authorization. Attributes may be changed
while it runs.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

OLLAMA = "application/vnd.ollama.image."
DOCKER = "application/vnd.docker.ai."
MODELPACK = "application/vnd.cncf.model."
KITOPS = "application/vnd.kitops.modelkit."
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEX = "application/vnd.oci.image.index.v1+json"
_REDIRECTED = 1 << 16

Layer = tuple[str, bytes] | tuple[str, bytes, dict[str, str]]


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def described(media_type: str, data: bytes, annotations: dict[str, str] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"mediaType": media_type, "digest": digest(data), "size": len(data)}
    return found | ({"annotations": annotations} if annotations else {})


@dataclass(frozen=True)
class Asked:
    """A request: `origin` is `registry`, `cdn` or `realm`."""

    origin: str
    path: str
    authorization: str
    range: str


@dataclass
class Registry:
    """The registry. With `login` (`user:password`) it wants that: as Basic, or with `tokens` by way of a token.

    `statuses`: the next answers, with `retry_after`. `answers`: bodies by path, in the place of the right ones.
    `wrong`: blobs are sent with their last byte changed so many times. `lifetime`: requests until a token is refused.
    """

    login: str = ""
    tokens: bool = False
    realm: str = ""
    lifetime: int = 1 << 30
    ignore_ranges: bool = False
    statuses: list[int] = field(default_factory=list)
    retry_after: str = ""
    wrong: int = 0
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[tuple[str, str], bytes] = field(default_factory=dict)
    answers: dict[str, bytes] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    def add(self, name: str, tag: str, layers: Sequence[Layer], **more: Any) -> str:
        """A model with these layers; the digest of its manifest."""
        for layer in layers:
            self.blobs[digest(layer[1])] = layer[1]
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described("application/json", b"{}")}
        return self.put(name, tag, manifest | {"layers": [described(*layer) for layer in layers]} | more)

    def put(self, name: str, tag: str, manifest: dict[str, Any]) -> str:
        """A manifest of any form; its digest."""
        data = json.dumps(manifest).encode()
        for reference in (tag, digest(data)):
            self.manifests[name, reference] = data
        return digest(data)

    def paths(self, origin: str = "registry") -> list[str]:
        return [each.path for each in self.asked if each.origin == origin]

    def __enter__(self) -> Registry:
        self._uses = 0
        self._servers = [self._server(origin) for origin in ("registry", "cdn")]
        self.url, self.cdn_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)
        self.host = self.url.removeprefix("http://")
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _server(self, origin: str) -> ThreadingHTTPServer:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with contextlib.suppress(ConnectionError):
                    registry._answer(self, origin)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """Clients break off what they need no more."""

        server = Server(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    def _answer(self, handler: BaseHTTPRequestHandler, origin: str) -> None:
        path, authorization = urlsplit(handler.path).path, handler.headers.get("Authorization", "")
        origin = "realm" if path == "/token" else origin
        self.asked.append(Asked(origin, handler.path, authorization, handler.headers.get("Range", "")))
        if self.statuses and origin == "registry":
            return self._send(
                handler, self.statuses.pop(0), b"", {"Retry-After": self.retry_after} if self.retry_after else {}
            )
        if origin == "realm":
            return self._send(handler, *self._token(handler, authorization))
        if origin == "registry" and not self._allowed(authorization):
            realm = self.realm or f"{self.url}/token"
            bearer = f'Bearer realm="{realm}",service="test",scope="repository:x:pull"'
            challenge = bearer if self.tokens else 'Basic realm="x"'
            return self._send(handler, 401, b"{}", {"WWW-Authenticate": challenge})
        if path == "/v2/":
            return self._send(handler, 200, b"{}", {})
        if path in self.answers:
            return self._send(handler, 200, self.answers[path], {})
        match = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/([^/]+)", path)
        if match and match[2] == "manifests" and (match[1], match[3]) in self.manifests:
            return self._send(handler, 200, self.manifests[match[1], match[3]], {"Content-Type": MANIFEST})
        if match and match[2] == "blobs" and match[3] in self.blobs:
            return self._blob(handler, origin, self.blobs[match[3]])
        return self._send(handler, 404, b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}', {})

    def _allowed(self, authorization: str) -> bool:
        if not (self.login or self.tokens):
            return True
        self._uses += 1
        if self.tokens:
            return authorization == "Bearer secret-token" and self._uses % self.lifetime != 0
        return authorization == "Basic " + base64.b64encode(self.login.encode()).decode()

    def _token(self, handler: BaseHTTPRequestHandler, authorization: str) -> tuple[int, bytes, dict[str, str]]:
        assert "scope" in parse_qs(urlsplit(handler.path).query)
        if self.login and authorization != "Basic " + base64.b64encode(self.login.encode()).decode():
            return 401, b"{}", {}
        return 200, b'{"token": "secret-token"}', {}

    def _blob(self, handler: BaseHTTPRequestHandler, origin: str, data: bytes) -> None:
        if len(data) > _REDIRECTED and origin == "registry":
            return self._send(handler, 307, b"", {"Location": self.cdn_url + handler.path})
        if self.wrong and len(data) > _REDIRECTED:
            data = data[:-1] + bytes([data[-1] ^ 1])
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
        if match is None or self.ignore_ranges:
            return self._send(handler, 200, data, {})
        start, end = int(match[1]), min(int(match[2]) + 1, len(data))
        self.wrong -= bool(self.wrong) and end == len(data)
        return self._send(handler, 206, data[start:end], {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"})

    def _send(self, handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str]) -> None:
        handler.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)
