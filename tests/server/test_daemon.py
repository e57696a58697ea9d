"""The daemon's life: start, the ways in which it cannot start, and its end."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.config import VERSION
from tests.daemon import Daemon, alive, allowed, environment, put_model, wait_until

LONG = {"tokens": ["word "] * 100_000, "delay": 0.01}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "x"}]}


def refused(daemon: Daemon, status: int = 1) -> dict[str, Any]:
    assert daemon.ended() == status
    refusal = json.loads(daemon.ready_line)
    assert refusal["error"]
    assert refusal["hint"]
    assert "Traceback" not in daemon.errors
    assert f"Error: {refusal['error']}\nhint: {refusal['hint']}" in daemon.errors
    return dict(refusal)


def test_it_is_ready_soon_and_says_where(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        assert daemon.ready_seconds < allowed(1)  # 0.25 s on an idle machine
        file = json.loads((tmp_path / "daemon.json").read_bytes())
        assert file.items() >= {"pid": daemon.pid, "url": daemon.url, "version": VERSION}.items()
        assert daemon.get("/health").json["pid"] == daemon.pid
        assert oct((tmp_path / "daemon.json").stat().st_mode & 0o777) == "0o600"
    assert daemon.process.returncode == 0
    assert not (tmp_path / "daemon.json").exists()
    assert "is ready on" in daemon.log
    assert daemon.log.splitlines()[-1].endswith("stopped")


def test_it_prints_nothing_and_logs_to_its_file_in_the_background(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        daemon.get("/api/tags")
    assert daemon.errors == "ready\n"
    assert "GET /api/tags 200" in daemon.log


def test_in_the_foreground_the_log_goes_to_the_terminal(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "server", "--home", str(tmp_path), "--port", "0", "--runtime", "fake"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        assert process.stderr is not None
        try:
            assert any("is ready on" in line for line in process.stderr)
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
        finally:
            process.kill()
    assert not (tmp_path / "logs" / "daemon.log").exists()


def test_a_home_has_one_daemon(tmp_path: Path) -> None:
    with Daemon(tmp_path) as first:
        began = time.monotonic()
        refusal = refused(Daemon(tmp_path))
        assert time.monotonic() - began < allowed(1)
        assert refusal["code"] == "store_locked"
        assert str(first.pid) in refusal["error"]
        assert first.url in refusal["hint"]
        assert first.get("/health").json["pid"] == first.pid
    with Daemon(tmp_path) as again:
        assert again.get("/health").status == 200


@contextlib.contextmanager
def stranger(answer: bytes | None) -> Iterator[int]:
    """Somebody else's server: one that answers `GET /api/version` so, or one that says nothing at all."""
    if answer is None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            yield server.getsockname()[1]
        return

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("answer", "whose"),
    [
        (b'{"version": "0.21.3"}', "Ollama 0.21.3"),
        (b'{"version": "0.14.0", "lm": "0.0.9"}', f"lm 0.0.9 (older than this {VERSION})"),
        (b'{"version": "0.14.0", "lm": "' + VERSION.encode() + b'"}', f"lm {VERSION}, "),
        (b"<html>", "another program"),
        (b"[1]", "another program"),
        (None, "another program"),
    ],
)
def test_a_taken_port_is_told_with_its_owner(tmp_path: Path, answer: bytes | None, whose: str) -> None:
    with stranger(answer) as port:
        refusal = refused(Daemon(tmp_path, arguments=("--port", str(port))))
    assert refusal["code"] == "start_failed"
    assert whose in refusal["error"]
    assert f"process {os.getpid()}" in refusal["error"]
    found = re.search(r"port (\d+) is free: set LM_PORT=\1 ", refusal["hint"])
    assert found and port < int(found[1]) < port + 100  # the next one that nobody else has


@pytest.mark.parametrize(
    ("arguments", "env", "named", "status"),
    [
        (("--port", "70000"), {}, "--port", 2),
        (("--host", "no.such.host.invalid"), {}, "no.such.host.invalid", 1),  # it may be known tomorrow
        ((), {"LM_CONTEXT": "lots"}, "LM_CONTEXT", 2),
    ],
)
def test_bad_settings_are_named_and_end_with_the_status_of_usage(
    tmp_path: Path, arguments: tuple[str, ...], env: dict[str, str], named: str, status: int
) -> None:
    assert named in refused(Daemon(tmp_path, arguments=arguments, env=env), status)["error"]


def test_a_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    put_model(tmp_path)
    (tmp_path / "store" / "store.json").write_text('{"version": 99}')
    assert refused(Daemon(tmp_path))["code"] == "store_damaged"


def test_shutdown_by_request(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        assert daemon.post("/lm/shutdown", {}).json["pid"] == daemon.pid
        assert daemon.process.wait(allowed(5)) == 0


def test_an_answer_under_way_is_finished_before_the_end(home: Path) -> None:
    with Daemon(home, script={"tokens": ["word "] * 30, "delay": 0.02}) as daemon:
        with daemon.opened("POST", "/api/chat", CHAT) as response:
            response.readline()
            daemon.process.send_signal(signal.SIGTERM)
            last = json.loads(response.read().splitlines()[-1])
        assert (last["done"], last["eval_count"]) == (True, 30)
        assert daemon.process.wait(allowed(5)) == 0


def test_the_second_signal_does_not_wait(home: Path) -> None:
    with Daemon(home, script=LONG) as daemon, daemon.opened("POST", "/api/chat", CHAT) as response:
        response.readline()
        children = daemon.children()
        daemon.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in daemon.log, 5)
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(allowed(2)) == 130
        wait_until(lambda: not any(alive(child) for child in children), 2)


@pytest.mark.slow
def test_an_endless_answer_is_cut_with_an_error_after_ten_seconds(home: Path) -> None:
    with Daemon(home, script=LONG) as daemon, daemon.opened("POST", "/api/chat", CHAT) as response:
        response.readline()
        began = time.monotonic()
        daemon.process.send_signal(signal.SIGTERM)
        last = json.loads(response.read().splitlines()[-1])
        assert (last["code"], "the daemon is stopping" in last["error"]) == ("stopping", True)
        assert daemon.process.wait(allowed(15)) == 0
        assert 9 < time.monotonic() - began < allowed(15)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_no_child_outlives_a_killed_daemon(home: Path, number: signal.Signals) -> None:
    with Daemon(home, script=LONG, runtime="fake") as daemon, daemon.opened("POST", "/api/chat", CHAT) as response:
        response.readline()
        children = daemon.children()
        assert children
        daemon.process.send_signal(number)
        daemon.process.wait(allowed(5))
        wait_until(lambda: not any(alive(child) for child in children), 2)
    with Daemon(home) as again:
        assert again.get("/api/tags").json["models"]


def test_the_daemon_imports_nothing_heavy() -> None:
    heavy = "('numpy', 'numba', 'llama_cpp', 'gguf', 'jinja2')"
    code = f"import server.daemon, sys; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
