"""What keys cost: answers of `/api/version` with a table of 10,000 keys against none, as ratios in one run.

`python -m benchmarks.access [ROUNDS]`. Two daemons answer by turns, a batch of requests each, over one connection each,
with the same bytes: the one without keys is sent one too, and passes it over. Printed are the median ratios of
answers/s and of the daemons' CPU time per answer.
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

KEYS, BATCH, ROUNDS = 10_000, 200, 60


class Server:
    """A daemon in a home of its own, and a connection to it."""

    def __init__(self, home: Path, keys: int, stack: ExitStack) -> None:
        made = [new_key("infer") for _ in range(max(keys, 1))]
        if keys:
            change_keys(home / "keys.json", lambda _: [key for _, key in made])
        command = [sys.executable, "-P", "-m", "server", "--home", str(home), "--port", "0", "--runtime", "fake"]
        self._process = stack.enter_context(
            subprocess.Popen(command, env=child_environment(), stderr=subprocess.DEVNULL)
        )
        stack.callback(self._process.terminate)
        note = home / "daemon.json"
        while not note.exists():
            assert self._process.poll() is None, "the daemon did not start"
            time.sleep(0.05)
        port = int(json.loads(note.read_bytes())["url"].rpartition(":")[2])
        self._socket = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        self._request = (
            f"GET /api/version HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {made[0][0]}\r\n\r\n".encode()
        )
        self._cpu = psutil.Process(self._process.pid)

    def batch(self) -> tuple[float, float]:
        """Seconds on the clock, and of the daemon's CPU time, for one batch of answers."""
        before, began = self._cpu.cpu_times(), time.perf_counter()
        for _ in range(BATCH):
            self._socket.sendall(self._request)
            answer = self._socket.recv(4096)
            assert answer.startswith(b"HTTP/1.1 200"), answer
        seconds, after = time.perf_counter() - began, self._cpu.cpu_times()
        return seconds, after.user + after.system - before.user - before.system


def main(rounds: int) -> None:
    """Print both ratios."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        without, with_keys = (Server(Path(folder) / str(keys), keys, stack) for keys in (0, KEYS))
        for server in (without, with_keys):
            server.batch()
        rows = [(without.batch(), with_keys.batch()) for _ in range(rounds)]
    speed = statistics.median(bare[0] / keyed[0] for bare, keyed in rows)
    cpu = sum(keyed[1] for _, keyed in rows) / sum(bare[1] for bare, _ in rows)
    rate = BATCH / statistics.median(bare[0] for bare, _ in rows)
    print(f"/api/version without keys: {rate:,.0f} answers/s; with {KEYS:,} keys {speed:.3f} times as many")
    print(f"CPU time per answer with keys: {cpu:.3f} times as much")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
