"""Who gets in, and what hostile requests cost."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from server.access.connections import MAX_FROM_ONE
from server.access.guard import AccessRules
from server.access.wrong import WRONG_KEY_SECONDS
from server.config import Config
from tests.daemon import Daemon, allowed, wait_until

MIB = 1 << 20


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:11434", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1:1", 200),
        ("127.8.8.8", 200),
        ("[::1]:11434", 200),
        ("app.localhost", 200),
        ("localhost.", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("192.168.1.5", 403),
        ("evil.example:11434", 403),
        ("localhost@evil.example", 403),
        ("", 403),
    ],
)
def test_hosts(echo: Daemon, host: str, status: int) -> None:
    assert echo.get("/api/tags", Host=host).status == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://localhost:3000"}, 200),
        ({"Origin": "http://127.0.0.1"}, 200),
        ({"Origin": "https://chat.example"}, 200),
        ({"Origin": "https://chat.example", "Sec-Fetch-Site": "cross-site"}, 200),
        ({"Origin": "app://obsidian.md"}, 200),
        ({"Origin": "tauri://localhost"}, 200),
        ({"Origin": "http://tauri.localhost"}, 200),
        ({"Origin": "vscode-webview://0a1b"}, 200),
        ({"Origin": "chrome-extension://abc"}, 403),
        ({"Origin": "file://"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://chat.example.evil"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "file://"}, 403),
        ({"Origin": "http://localhost.evil.example"}, 403),
        ({"Origin": "http://localhost:3000@evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
    ],
)
def test_origins(guarded: Daemon, headers: dict[str, str], status: int) -> None:
    key = {"Authorization": "Bearer sesame"}
    answer = guarded.get("/api/tags", **headers, **key)
    assert answer.status == status
    allowed = answer.headers.get("Access-Control-Allow-Origin")
    assert allowed == (headers.get("Origin") if status == 200 else None)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> object:
    env = {"LM_API_KEY": "sesame", "LM_ORIGINS": "https://chat.example"}
    with Daemon(tmp_path_factory.mktemp("guarded"), env=env) as daemon:
        yield daemon


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer sesame2"}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": "Bearer sesame"}, 200),
        ({"Authorization": "bearer  sesame"}, 200),
        ({"Authorization": "BEARER sesame", "Host": "other.example"}, 200),
        ({"Authorization": "Basic sesame"}, 401),
        ({"Host": "other.example"}, 403),
        ({"x-api-key": "sesame"}, 200),
    ],
)
def test_the_key_is_wanted_where_there_is_one(guarded: Daemon, headers: dict[str, str], status: int) -> None:
    assert guarded.get("/api/tags", **headers).status == status
    told = guarded.get("/v1/models", **headers)
    assert told.status == status
    assert status != 401 or told.json["error"]["code"] == "invalid_api_key"


def test_watchdogs_need_no_key(guarded: Daemon) -> None:
    assert guarded.get("/").body == b"Ollama is running"
    assert guarded.get("/health").json == {"status": "ok"}
    assert guarded.get("/health", Authorization="Bearer sesame").json["pid"] == guarded.pid
    assert guarded.get("/health", Host="other.example").status == 403


def test_wrong_keys_are_slow(guarded: Daemon) -> None:
    began = time.monotonic()
    with ThreadPoolExecutor(5) as threads:
        answers = list(threads.map(lambda key: guarded.get("/api/tags", Authorization=f"Bearer {key}"), range(5)))
    assert [answer.status for answer in answers] == [401] * 5
    assert time.monotonic() - began > 5 * WRONG_KEY_SECONDS - 0.1
    assert guarded.get("/api/tags", Authorization="Bearer sesame").status == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 404),
        ("own", 404),
        ("https://chat.example", 404),
        ("tauri://localhost", 403),
        ("app://obsidian.md", 403),
        ("vscode-webview://0a1b", 403),
        ("http://localhost:3000", 403),
    ],
)
def test_pages_of_others_change_nothing(guarded: Daemon, origin: str | None, status: int) -> None:
    own = f"http://127.0.0.1:{guarded.port}"
    headers = {"Authorization": "Bearer sesame"}
    if origin:
        headers["Origin"] = own if origin == "own" else origin
    assert guarded.ask("DELETE", "/api/delete", {"model": "none"}, headers).status == status
    assert guarded.ask("POST", "/lm/stop/", {"model": "none"}, headers).status == status
    if origin:
        for path, method in (("/lm/shutdown", "POST"), ("/api/pull", "POST"), ("//api/delete", "DELETE")):
            asked = {"Access-Control-Request-Method": method, "Origin": headers["Origin"]}
            assert guarded.ask("OPTIONS", path, headers=asked).status == (403 if status == 403 else 204)


@pytest.mark.parametrize(
    ("allowed", "host", "known"),
    [
        ("http://*.lan.example", "a.lan.example:11434", True),
        ("http://lan.example:*", "lan.example:11434", True),
        ("https://lan.example:8443", "lan.example", True),
        ("http://*.lan.example", "lan.example.evil", False),
        ("*", "evil.example", False),
        ("chrome-extension://*", "evil.example", False),
    ],
)
def test_an_allowed_pages_host_is_the_daemons_name(allowed: str, host: str, known: bool, tmp_path: Path) -> None:
    rules = AccessRules(Config.load(env={"LM_ORIGINS": allowed, "LM_HOME": str(tmp_path)}))
    assert rules._is_own_name(host) == known


def test_the_host_of_a_trusted_origin_is_a_name_of_the_daemon(guarded: Daemon) -> None:
    assert guarded.get("/", Host="chat.example:11434").status == 200
    assert guarded.get("/", Host="other.example").status == 403


def test_a_page_may_ask_beforehand(guarded: Daemon) -> None:
    asked = {"Origin": "https://chat.example", "Access-Control-Request-Method": "POST"}
    own = {"Access-Control-Request-Headers": "content-type,x-stainless-os"}
    answer = guarded.ask("OPTIONS", "/api/chat", headers=asked | own)
    assert answer.status == 204
    assert answer.headers["Access-Control-Allow-Headers"] == "content-type,x-stainless-os"
    assert answer.headers["Access-Control-Allow-Origin"] == "https://chat.example"
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    assert guarded.ask("OPTIONS", "/api/chat", headers=asked | {"Origin": "https://evil.example"}).status == 403


def test_a_page_may_read_a_stream(echo: Daemon) -> None:
    body = {"model": "tiny", "prompt": "a b"}
    for path, more in (("/api/generate", {}), ("/v1/completions", {"stream": True})):
        answer = echo.post(path, body | more, Origin="http://localhost:3000")
        assert answer.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
        assert answer.headers["X-Request-Id"]


@pytest.mark.parametrize(
    ("allowed", "origin", "known"),
    [
        ("chrome-extension://*", "chrome-extension://abc", True),
        ("chrome-extension://*", "https://evil.example", False),
        ("https://*.chat.example,http://lan.example:*", "https://a.chat.example", True),
        ("https://*.chat.example,http://lan.example:*", "http://lan.example:8080", True),
        ("https://*.chat.example,http://lan.example:*", "https://a.chat.example@evil.example", False),
        ("file://", "file://", True),
        ("*", "https://anything.example", True),
        ("*", "null", True),
    ],
)
def test_origins_as_ollama_writes_them(allowed: str, origin: str, known: bool, tmp_path: Path) -> None:
    config = Config.load(env={"OLLAMA_ORIGINS": allowed, "LM_HOME": str(tmp_path)})
    assert AccessRules(config).allows_origin(origin) == known


def test_no_secret_gets_into_the_log(guarded: Daemon) -> None:
    guarded.get("/api/tags?key=sesame", Authorization="Bearer sesame")
    assert "sesame" not in guarded.log


def test_listening_to_others_needs_a_key_or_a_word(tmp_path: Path) -> None:
    refused = Daemon(tmp_path, arguments=("--host", "0.0.0.0"))
    assert refused.ended() == 1
    assert "LM_API_KEY" in refused.ready_line
    profile = Daemon(tmp_path, env={"OLLAMA_HOST": "'0.0.0.0'"})
    assert profile.ended() == 1
    assert "`OLLAMA_HOST`" in profile.ready_line and "LM_HOST=127.0.0.1" in profile.ready_line
    with Daemon(tmp_path, arguments=("--host", "0.0.0.0", "--no-auth")) as daemon:
        assert daemon.get("/api/tags", Host="192.168.1.5:11434").status == 200
        assert daemon.get("/api/tags", Host="host.docker.internal:11434").status == 200
        assert daemon.get("/api/tags", Host="lm:11434").status == 200
        refused_name = daemon.get("/api/tags", Host="evil.example")
        assert refused_name.status == 403 and "LM_ORIGINS" in refused_name.json["hint"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"nonsense", 400),
        (b"[]", 400),
        (b"{}", 400),
        (b'{"model": 5}', 400),
        (b'{"model": "tiny", "messages": ' + b"[" * 100_000, 400),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400),
        (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, 413),
        (b'{"model": "tiny", "options": {"seed": ' + b"9" * 5000 + b"}}", 400),
        (b'{"model": "tiny", "keep_alive": 1e999}', 400),
        (b'{"model": "\\ud800"}', 400),
        (b'{"model": "\xed\xa0\x80"}', 400),
        (b'{"model": "../../etc/passwd"}', 404),
        (b'{"model": "a/../../b"}', 400),
        (b'{"model": "x\\u0000y"}', 400),
        (b'{"model": "' + b"x" * 100_000 + b'"}', 400),
        (b" " * (33 * MIB), 413),
    ],
)
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/v1/chat/completions"])
def test_hostile_bodies(echo: Daemon, path: str, body: bytes, status: int) -> None:
    if path.startswith("/v1") and b"messages" not in body and status == 404:
        status = 400
    began = time.monotonic()
    answer = echo.ask("POST", path, body)
    assert answer.status == status, answer.body
    told = answer.json["error"]
    message = told["message"] if isinstance(told, dict) else told
    assert "Traceback" not in message
    assert len(message) < 600
    assert time.monotonic() - began < allowed(2)
    assert echo.get("/health").status == 200


def test_a_declared_giant_is_refused_before_it_is_sent(echo: Daemon) -> None:
    with socket.create_connection(("127.0.0.1", echo.port), timeout=allowed(5)) as connection:
        connection.sendall(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000000\r\n\r\n{")
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_an_endless_body_is_cut_off(echo: Daemon) -> None:
    chunk = b"100000\r\n" + b" " * MIB + b"\r\n"
    with socket.create_connection(("127.0.0.1", echo.port), timeout=allowed(5)) as connection:
        connection.sendall(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(200):
                connection.sendall(chunk)
        except OSError:
            return
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("gzip", gzip.compress(b'{"model": "tiny", "input": "a"}', mtime=0), 200),
        ("deflate", zlib.compress(b'{"model": "tiny", "input": "a"}'), 200),
        ("gzip", b"\x1f\x8b", 400),
        ("gzip", gzip.compress(b'{"model": "tiny", "input": "a"}', mtime=0)[:-9], 400),
        ("gzip", b'{"model": "tiny"}', 400),
        ("gzip", gzip.compress(b" " * (33 * MIB)), 413),
        ("zstd", b"\x28\xb5\x2f\xfd", 415),
        ("br", b"x", 415),
    ],
)
def test_a_packed_body_is_unpacked_within_the_bound(echo: Daemon, encoding: str, body: bytes, status: int) -> None:
    answer = echo.ask("POST", "/v1/embeddings", body, {"Content-Encoding": encoding})
    assert answer.status == status, answer.body
    assert status == 200 or answer.json["error"]["message"]


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
def test_framing_that_proxies_disagree_on_is_refused(echo: Daemon, head: bytes) -> None:
    with socket.create_connection(("127.0.0.1", echo.port), timeout=allowed(5)) as connection:
        connection.sendall(head)
        assert connection.recv(100).startswith((b"HTTP/1.1 400", b"HTTP/1.0 400", b"HTTP/1.1 403"))


@pytest.mark.slow
def test_headers_that_do_not_come_cost_ten_seconds(echo: Daemon) -> None:
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", echo.port), timeout=allowed(20)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: local")
        with contextlib.suppress(ConnectionError):
            assert connection.recv(100) == b""
    assert 9 < time.monotonic() - began < allowed(12)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * (31 * MIB),
        b'{"model": "' + b"\\n" * (15 * MIB) + b'"}',
        b'{"model": "tiny", "messages": [' + b"{}," * (10 * MIB) + b"]}",
        b'{"model": "tiny", "options": {' + b",".join(b'"o%d":1' % number for number in range(120_000)) + b"}}",
        b'{"model": "tiny", "logit_bias": {' + b",".join(b'"%d":1' % number for number in range(MIB)) + b"}}",
        b'{"model": "tiny", "prompt": [' + b"1," * (MIB - 100) + b"1]}",
        b'{"model": "tiny", "keep_alive": "' + b"1m" * (15 * MIB) + b'"}',
    ],
    ids=["brackets", "escapes", "objects", "options", "biases", "ids", "duration"],
)
def test_no_body_silences_the_daemon(echo: Daemon, body: bytes) -> None:
    done = threading.Event()

    def send() -> None:
        for path in ("/api/chat", "/v1/completions"):
            assert echo.ask("POST", path, body).status in (200, 400, 404, 413)
        done.set()

    sender = threading.Thread(target=send)
    sender.start()
    longest = 0.0
    while not done.is_set():
        began = time.monotonic()
        assert echo.get("/health").status == 200
        longest = max(longest, time.monotonic() - began)
        done.wait(0.01)
        assert sender.is_alive() or done.is_set()
    sender.join()
    assert longest < allowed(0.5)  # it was silent for 5 to 27 s


def test_an_expectation_that_nobody_meets_gets_an_answer(echo: Daemon) -> None:
    for path in ("/api/chat", "/nowhere"):
        answer = echo.ask("POST", path, b"{}", {"Expect": "foo"})
        assert (answer.status, answer.json["code"]) == (417, "bad_body")
    assert echo.ask("POST", "/api/embed", {"model": "tiny"}, {"Expect": "100-Continue"}).status == 200


def test_idle_connections_do_not_shut_others_out(echo: Daemon) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_FROM_ONE + 20):
            stack.enter_context(socket.create_connection(("127.0.0.1", echo.port), timeout=allowed(5)))
        assert echo.get("/health").status == 200


@pytest.mark.parametrize("broken", [b"zz\r\n{}\r\n", b"2\r\n{}xx\r\n", b"-1\r\n"])
def test_broken_chunks_of_a_body_are_refused_at_once(echo: Daemon, broken: bytes) -> None:
    with socket.create_connection(("127.0.0.1", echo.port), timeout=allowed(5)) as connection:
        connection.sendall(b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        connection.sendall(b"1\r\n{\r\n")
        wait_until(lambda: echo.get("/health").status == 200, 5)  # the daemon reads the body by now
        connection.sendall(broken)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400") and b"not in chunks as it says" in answer
