"""Requests of every kind: the body arrives as it was sent, the head of the answer is read, nothing is sent twice."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from registry.errors import SourceUnavailable
from registry.net.address import HttpAddress
from registry.net.network import Network
from registry.net.retries import retry_after
from registry.net.transport import HttpClient

MANIFEST = b'{"schemaVersion": 2}'


@dataclass
class Registry:
    """A stand-in for a registry: remembers what it was sent, and answers as such a server does."""

    url: str = ""
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    connections: set[tuple[str, int]] = field(default_factory=set)

    def address(self, path: str) -> HttpAddress:
        return HttpAddress.parse(self.url + path)


@contextmanager
def running() -> Iterator[Registry]:
    registry = Registry()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            registry.requests.append((self.command, self.path, dict(self.headers.items()), body))
            registry.connections.add(self.client_address[:2])
            status = {"POST": 202, "PATCH": 202, "PUT": 201, "DELETE": 307}.get(self.command, 200)
            self.send_response(status)
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
            self.send_header("Content-Length", str(len(MANIFEST) if status == 200 else 0))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(MANIFEST)

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        registry.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield registry
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def registry() -> Iterator[Registry]:
    with running() as found:
        yield found


@pytest.fixture
def client() -> Iterator[HttpClient]:
    made = HttpClient(Network(token="hf_secret", timeout=5))
    yield made
    made.close()


def test_a_head_has_no_body_and_leaves_the_connection(registry: Registry, client: HttpClient) -> None:
    for _ in range(2):
        reply = client.send("HEAD", registry.address("/v2/x/blobs/sha256:0"), {})
        assert (reply.status, reply.headers["Content-Length"]) == (200, str(len(MANIFEST)))
        assert reply.readinto(bytearray(1)) == 0
        reply.discard()
    reply = client.send("GET", registry.address("/v2/x/manifests/latest"), {})
    body = bytearray(len(MANIFEST))
    assert reply.readinto(memoryview(body)) == len(MANIFEST)
    assert body == MANIFEST
    assert len(registry.connections) == 1


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
@pytest.mark.parametrize("body", [b"", b"x" * 3_000_000], ids=["empty", "3 MB"])
def test_a_body_arrives_as_it_was_sent(registry: Registry, client: HttpClient, method: str, body: bytes) -> None:
    reply = client.send(method, registry.address("/v2/x?digest=sha256:0"), {"Content-Type": "application/x"}, body)
    reply.discard()
    command, path, headers, received = registry.requests[0]
    assert (command, path, received) == (method, "/v2/x?digest=sha256:0", body)
    assert (headers["Content-Length"], headers["Content-Type"]) == (str(len(body)), "application/x")
    assert "Authorization" not in headers  # a token is for whoever asks to give


def test_a_redirect_is_an_answer(registry: Registry, client: HttpClient) -> None:
    reply = client.send("DELETE", registry.address("/v2/x"), {})
    assert (reply.status, reply.headers["Location"]) == (307, "http://127.0.0.1:1/elsewhere")
    assert len(registry.requests) == 1


def test_no_method_reaches_a_private_address_by_a_public_redirect(registry: Registry, client: HttpClient) -> None:
    for method in ("GET", "HEAD", "POST", "PUT"):
        with pytest.raises(SourceUnavailable, match="private address"):
            client.send(method, registry.address("/"), {}, public=True)
        client.close()
    assert not registry.requests


@pytest.mark.parametrize(("method", "times"), [("GET", 2), ("PUT", 2), ("POST", 1), ("PATCH", 1)])
def test_only_what_may_be_sent_twice_is(client: HttpClient, method: str, times: int) -> None:
    """A server that answers once on each connection, then reads the next request and hangs up."""
    heard: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                heard.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                if more := connection.recv(65536):
                    heard.append(more)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        address = HttpAddress.parse(f"http://127.0.0.1:{listener.getsockname()[1]}/x")
        client.send("GET", address, {}).discard()
        assert client.send(method, address, {}, b"").status == 200
        client.close()
        thread.join()
    assert [request.split()[0].decode() for request in heard[1:]] == [method] * times


def test_a_date_to_wait_for_is_read_by_the_clock_of_the_source() -> None:
    headers = Message()
    headers["Date"] = "Fri, 01 Jan 1999 00:00:00 GMT"
    headers["Retry-After"] = "Fri, 01 Jan 1999 00:00:07 GMT"
    assert retry_after(headers) == 7
    headers.replace_header("Retry-After", "nonsense")
    assert retry_after(headers) == 0
