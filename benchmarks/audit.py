"""What the audit log and keys cost: small answers of a scripted engine with both against neither, in one run.

`python -m benchmarks.audit [ROUNDS]`. Two daemons answer by turns, a batch of `/api/generate` each, over one connection
each, with the same bytes. Printed are the median ratio of answers/s, and the ratio of the daemons' CPU time.
"""

from __future__ import annotations

import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import psutil

from runtime.child import child_environment
from server.keys.file import change_keys
from server.keys.record import new_key
from tests.daemon import put_model

BATCH, ROUNDS = 50, 40
BODY = json.dumps({"model": "tiny", "prompt": "hi", "stream": False}).encode()


class AuditedServer:
    """A daemon with the scripted engine in a home of its own, and a connection to it."""

    def __init__(self, home: Path, audited: bool, stack: ExitStack) -> None:
        home.mkdir()
        put_model(home, "tiny")
        secret, key = new_key("infer")
        if audited:
            change_keys(home / "keys.json", lambda _: [key])
        else:
            (home / "config.toml").write_text('audit = "off"\n')
        script = home / "script.json"
        script.write_text(json.dumps({"tokens": ["once", " upon", " a", " time"]}))
        command = [sys.executable, "-P", "-m", "server", "--home", str(home), "--port", "0"]
        self._process = stack.enter_context(
            subprocess.Popen(
                [*command, "--runtime", f"fake:{script}"], env=child_environment(), stderr=subprocess.DEVNULL
            )
        )
        stack.callback(self._process.terminate)
        note = home / "daemon.json"
        while not note.exists():
            assert self._process.poll() is None, "the daemon did not start"
            time.sleep(0.05)
        port = int(json.loads(note.read_bytes())["url"].rpartition(":")[2])
        self._socket = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        head = (
            "POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {secret}\r\nContent-Length: {len(BODY)}\r\n\r\n"
        )
        self._request = head.encode() + BODY
        self._cpu = psutil.Process(self._process.pid)

    def batch(self) -> tuple[float, float]:
        """Seconds on the clock, and of the daemon's CPU time, for one batch of answers."""
        before, began = self._cpu.cpu_times(), time.perf_counter()
        for _ in range(BATCH):
            self._socket.sendall(self._request)
            answer = b""
            while not answer.endswith(b"}"):
                answer += self._socket.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200"), answer
        seconds, after = time.perf_counter() - began, self._cpu.cpu_times()
        return seconds, after.user + after.system - before.user - before.system


def main(rounds: int) -> None:
    """Print both ratios."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        without = AuditedServer(Path(folder) / "without", False, stack)
        audited = AuditedServer(Path(folder) / "audited", True, stack)
        for server in (without, audited):
            server.batch()
        rows = [(without.batch(), audited.batch()) for _ in range(rounds)]
    speed = statistics.median(bare[0] / kept[0] for bare, kept in rows)
    cpu = sum(kept[1] for _, kept in rows) / sum(bare[1] for bare, _ in rows)
    rate = BATCH / statistics.median(bare[0] for bare, _ in rows)
    print(f"without audit and keys: {rate:,.0f} answers/s; with both {speed:.3f} times as many")
    print(f"CPU time of the daemon per answer with both: {cpu:.3f} times as much")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
