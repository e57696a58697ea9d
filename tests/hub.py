"""A small hub that answers the Hugging Face Hub's routes for folders given to it: real HTTP, two origins, faults.

    with Hub({"org/repo": folder}) as hub:
        open_source(parse("org/repo"), hub.url, Network())
    assert not any("authorization" in request.headers for request in hub.requests if request.origin == "cdn")

Large files (`*.safetensors`, `*.gguf`, `*.bin`, anything of 10 MB or more) are answered with a redirect to the CDN,
which listens on another port and wants the query of the redirect; the others come from the hub itself. Routes, headers
and error codes as huggingface_hub 2.x expects them. Attributes of `Hub` may be changed while it runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LARGE = 10_000_000
LFS = (".safetensors", ".gguf", ".bin")
CHUNK = 1 << 16


@dataclass(frozen=True)
class File:
    """A file of a repository with the digests that the hub declares."""

    path: Path
    name: str

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    @property
    def lfs(self) -> bool:
        return self.name.endswith(LFS) or self.size >= LARGE

    @cached_property
    def sha256(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        """The small file that git itself has in the place of a large one."""
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @cached_property
    def blob_id(self) -> str:
        data = self.pointer if self.lfs else self.path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def sibling(self, blobs: bool) -> dict[str, Any]:
        entry: dict[str, Any] = {"rfilename": self.name}
        if blobs:
            entry |= {"blobId": self.blob_id, "size": self.size}
            if self.lfs:
                entry["lfs"] = {"sha256": self.sha256, "size": self.size, "pointerSize": len(self.pointer)}
        return entry


@dataclass(frozen=True)
class Commit:
    """The files of a repository at one moment."""

    files: dict[str, File]

    @classmethod
    def of(cls, folder: Path) -> Commit:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in paths]
        return cls({name: File(path, name) for name, path in zip(names, paths, strict=True)})

    @cached_property
    def sha(self) -> str:
        return hashlib.sha1(
            "".join(f"{name} {file.blob_id}\n" for name, file in self.files.items()).encode()
        ).hexdigest()


@dataclass(frozen=True)
class Request:
    """One request as it arrived; `origin` is `hub` or `cdn`, header names are in lower case."""

    origin: str
    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Faults:
    """The faults of both origins; all but `statuses` are faults in the bodies of files.

    cut_after: the connection is closed after N bytes of a body, the first `cuts` times.
    flip: byte N of every file is sent with its lowest bit inverted, the first `flips` times.
    ignore_ranges: a request with a range gets 200 and the whole file.
    statuses: the next answers, one for each request (503, 429, …), on any route; with a header `retry_after`.
    stall_after: after N bytes of a body nothing more is sent until the hub closes, the first `stalls` times.
    """

    cut_after: int | None = None
    cuts: int = 1
    flip: int | None = None
    flips: int = 1 << 30
    ignore_ranges: bool = False
    statuses: list[int] = field(default_factory=list)
    stall_after: int | None = None
    stalls: int = 1
    retry_after: str | None = None


class Hub:
    """The hub; use it as a context manager. `url` is its endpoint, `cdn_url` the other origin."""

    def __init__(
        self,
        repos: Mapping[str, Path],
        *,
        token: str | None = None,
        gated: Iterable[str] = (),
        renamed: Mapping[str, str] | None = None,
        bandwidth: float | None = None,
        latency: float = 0.0,
    ) -> None:
        """`token`: required for every repository; `gated`: repositories that no token opens (licence not accepted).

        `renamed`: old name → name in `repos`. `bandwidth`: bytes/s, shared by all connections. `latency`: seconds
        before each answer. The attribute `flip_in` limits the fault `flip` to files with this text in their names.
        """
        self.token, self.gated, self.renamed = token, set(gated), dict(renamed or {})
        self.bandwidth, self.latency = bandwidth, latency
        self.faults = Faults()
        self.flip_in = ""
        self.listed: dict[str, dict[str, Any]] = {}
        self.requests: list[Request] = []
        self.bytes_sent = 0
        self.repos: dict[str, dict[str, Commit]] = {}
        self.heads: dict[str, str] = {}
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._due = 0.0
        self.folders = dict(repos)
        for name, folder in repos.items():
            self.push(name, folder)

    def push(self, repo: str, folder: Path) -> str:
        """Make `folder` the repository's newest commit; the older ones stay reachable. Returns the commit."""
        commit = Commit.of(folder)
        self.repos.setdefault(repo, {})[commit.sha] = commit
        self.heads[repo] = commit.sha
        return commit.sha

    def __enter__(self) -> Hub:
        self._servers = [_Server(self, origin) for origin in ("hub", "cdn")]
        self.url, self.cdn_url = (server.url for server in self._servers)
        self._threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in self._servers]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()

    def paths(self, origin: str) -> list[str]:
        """Paths requested from one origin, in order."""
        return [request.path for request in self.requests if request.origin == origin]

    def find(self, digest: str) -> File | None:
        """The large file with this SHA-256."""
        commits = (commit for repo in self.repos.values() for commit in repo.values())
        files = (file for commit in commits for file in commit.files.values())
        return next((file for file in files if file.lfs and file.sha256 == digest), None)

    def pace(self, count: int) -> None:
        """Wait until `count` more bytes may be sent."""
        with self.lock:
            self.bytes_sent += count
            if not self.bandwidth:
                return
            now = time.monotonic()
            self._due = max(self._due, now) + count / self.bandwidth
            wait = self._due - now
        self.closing.wait(wait)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, hub: Hub, origin: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.origin = hub, origin
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.open: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        for connection in list(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is not news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        hub = self.server.hub
        headers = {name.lower(): value for name, value in self.headers.items()}
        hub.requests.append(Request(self.server.origin, self.command, self.path, headers))
        hub.closing.wait(hub.latency)
        with hub.lock:
            status = hub.faults.statuses.pop(0) if hub.faults.statuses else None
        if status is not None:
            extra = {"Retry-After": hub.faults.retry_after} if hub.faults.retry_after else {}
            return self._answer(status, b"trouble", extra)
        return self._cdn() if self.server.origin == "cdn" else self._hub()

    do_HEAD = do_GET

    def _hub(self) -> None:
        words = [unquote(word) for word in urlsplit(self.path).path.strip("/").split("/")]
        if words == ["api", "models"]:
            return self._search(parse_qs(urlsplit(self.path).query))
        if words[:2] == ["api", "models"] and len(words) in (4, 6) and words[4:5] in ([], ["revision"]):
            return self._info("/".join(words[2:4]), words[5] if len(words) == 6 else "main")
        if len(words) >= 5 and words[2] == "resolve":
            return self._resolve("/".join(words[:2]), words[3], "/".join(words[4:]))
        return self._answer(404, b"not found")

    def _search(self, query: dict[str, list[str]]) -> None:
        """The repositories whose names have all words, by downloads: `listed` has what the hub says of each."""
        words = query["search"][0].lower().split()
        rows = [{"id": name, **about} for name, about in self.server.hub.listed.items()]
        rows = [row for row in rows if all(word in row["id"].lower() for word in words)]
        rows.sort(key=lambda row: row.get("downloads", 0), reverse=True)
        self._answer(200, json.dumps(rows[: int(query["limit"][0])]).encode(), {"Content-Type": "application/json"})

    def _commit(self, repo: str, revision: str) -> Commit | None:
        """The commit, or None after an error or a redirect was sent."""
        hub, given = self.server.hub, self.headers.get("Authorization")
        if repo in hub.renamed:
            self._answer(307, b"", {"Location": self.path.replace(quote(repo), quote(hub.renamed[repo]), 1)})
        elif given is not None and hub.token is not None and given != f"Bearer {hub.token}":
            self._problem(401, "", "Invalid credentials in Authorization header")
        elif given is None and (hub.token is not None or repo not in hub.repos):
            # The hub does not say whether a repository exists that the caller may not see.
            self._problem(401, "RepoNotFound", "Invalid username or password.")
        elif repo not in hub.repos:
            self._problem(404, "RepoNotFound", "Repository not found")
        elif commit := hub.repos[repo].get(hub.heads[repo] if revision == "main" else revision):
            return commit
        else:
            self._problem(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return None

    def _info(self, repo: str, revision: str) -> None:
        if commit := self._commit(repo, revision):
            blobs = "blobs=true" in urlsplit(self.path).query.lower()
            body = {
                "_id": "0" * 24, "id": repo, "modelId": repo, "sha": commit.sha, "private": False, "disabled": False,
                "gated": "manual" if repo in self.server.hub.gated else False, "tags": [], "cardData": {},
                "siblings": [file.sibling(blobs) for file in commit.files.values()],
            }  # fmt: skip
            self._answer(200, json.dumps(body).encode(), {"Content-Type": "application/json; charset=utf-8"})

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        commit = self._commit(repo, revision)
        if commit is None:
            return None
        if repo in self.server.hub.gated:
            return self._problem(403, "GatedRepo", f"Access to model {repo} is restricted")
        file = commit.files.get(name)
        if file is None:
            return self._problem(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit.sha})
        headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if not file.lfs:
            return self._file(file, headers | {"ETag": f'"{file.blob_id}"'})
        linked = {"X-Linked-Size": str(file.size), "X-Linked-Etag": f'"{file.sha256}"', "ETag": f'"{file.sha256}"'}
        location = f"{self.server.hub.cdn_url}/{file.sha256}?Expires=1&Signature=secret"
        return self._answer(302, b"Found. Redirecting", headers | linked | {"Location": location})

    def _cdn(self) -> None:
        path, _, query = self.path.partition("?")
        file = self.server.hub.find(path.strip("/"))
        if "Signature=secret" not in query or file is None:
            return self._answer(403, b"<Error><Code>AccessDenied</Code></Error>")
        return self._file(file, {"ETag": f'"{file.sha256}"', "Accept-Ranges": "bytes"})

    def _file(self, file: File, headers: dict[str, str]) -> None:
        size, start, end = file.size, 0, file.size
        wanted = self.headers.get("Range")
        if wanted and not self.server.hub.faults.ignore_ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start = int(first) if first else max(size - int(last), 0)
            end = min(int(last) + 1, size) if first and last else size
            if start >= size:
                return self._answer(416, b"", headers | {"Content-Range": f"bytes */{size}"})
            headers = headers | {"Content-Range": f"bytes {start}-{end - 1}/{size}"}
        self._head(206 if "Content-Range" in headers else 200, end - start, headers)
        if self.command == "GET":
            self._send(file, start, end)
        return None

    def _send(self, file: File, start: int, end: int) -> None:
        hub, sent = self.server.hub, 0
        with hub.lock:
            faults = hub.faults
            cut = faults.cut_after if faults.cut_after is not None and faults.cuts > 0 else None
            stall = faults.stall_after if faults.stall_after is not None and faults.stalls > 0 else None
            wrong = faults.flip is not None and faults.flips > 0 and hub.flip_in in file.name
            flip = faults.flip if faults.flip is not None and wrong and start <= faults.flip < end else None
            faults.cuts -= cut is not None and cut < end - start
            faults.stalls -= stall is not None and stall < end - start
            faults.flips -= flip is not None
        with file.path.open("rb") as source:
            source.seek(start)
            while sent < end - start:
                limit = min((stop for stop in (cut, stall) if stop is not None), default=end - start)
                chunk = bytearray(source.read(min(CHUNK, end - start - sent, max(limit - sent, 0))))
                if not chunk:
                    if stall is not None and sent >= stall:
                        hub.closing.wait()
                    self.close_connection = True
                    return
                if flip is not None and 0 <= flip - start - sent < len(chunk):
                    chunk[flip - start - sent] ^= 1
                hub.pace(len(chunk))
                self.wfile.write(chunk)
                sent += len(chunk)

    def _problem(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        extra = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}) | dict(headers or {})
        return self._answer(status, json.dumps({"error": message}).encode(), extra)

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self._head(status, len(body), headers or {})
        if self.command == "GET":
            self.wfile.write(body)

    def _head(self, status: int, length: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
