"""A hub for measurements: the Hugging Face Hub's routes for one model, from a folder or made as it is read, at a rate.

    python -m benchmarks.hub FOLDER [--rate MB/S] [--sparse]

Prints its URL, then serves `bench/model` until it is killed. With `--sparse` the folder's safetensors hold a header
only, and the hub sends the same 64 MB of weights over and over where their bytes would be: a model of any size takes
no disk.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import socket
import struct
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks.synthetic import to_bf16
from registry.net.network import Limiter

NAME = "bench/model"
COMMIT = "c" * 40
STEP = 1 << 20
TABLE = 64_000_000


class File:
    """A file of the model: its name, size, digest, and how its bytes are sent."""

    def __init__(self, path: Path, table: memoryview | None) -> None:
        self.name = path.name
        self.file = path.open("rb")
        self.held = os.fstat(self.file.fileno()).st_size
        self.table = table
        self.size = self.held if table is None else self._claimed()
        self.large = self.name.endswith(".safetensors")
        whole = hashlib.sha256() if self.large else hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)
        at = 0
        while at < self.size:
            data = self.read(at, min(STEP, self.size - at))
            whole.update(data)
            at += len(data)
        self.digest = whole.hexdigest()

    def _claimed(self) -> int:
        length = struct.unpack("<Q", os.pread(self.file.fileno(), 8, 0))[0]
        header = json.loads(os.pread(self.file.fileno(), length, 8))
        return 8 + length + max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")

    def read(self, at: int, count: int) -> bytes | memoryview:
        """Up to `count` bytes, from the disk or from the table."""
        if at < self.held or self.table is None:
            return os.pread(self.file.fileno(), count, at)
        start = (at - self.held) % TABLE
        return self.table[start : start + count]

    def describe(self) -> dict[str, object]:
        """As the hub lists it."""
        listed: dict[str, object] = {"rfilename": self.name, "size": self.size, "blobId": self.digest[:40]}
        return listed | ({"lfs": {"sha256": self.digest, "size": self.size}} if self.large else {})


class Hub:
    """The server; `rate` in bytes/s for all connections together, 0 for no limit."""

    def __init__(self, folder: Path, rate: float, sparse: bool) -> None:
        normal = np.random.default_rng(0).standard_normal(TABLE // 2, np.float32) * np.float32(0.02)
        table = memoryview(to_bf16(normal).tobytes()) if sparse else None
        paths = sorted(path for path in folder.iterdir() if path.is_file())
        self.files = {path.name: File(path, table if path.suffix == ".safetensors" else None) for path in paths}
        self.limiter = Limiter(rate) if rate else None

    def serve(self, connection: socket.socket) -> None:
        """Answer the requests of one connection."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader = connection.makefile("rb")
        try:
            while line := reader.readline():
                fields = {}
                while (field := reader.readline().strip()) != b"":
                    key, _, value = field.decode().partition(":")
                    fields[key.lower()] = value.strip()
                self.answer(connection, line.split()[1].decode(), fields.get("range", ""))
        except OSError:
            pass
        connection.close()

    def answer(self, connection: socket.socket, path: str, wanted: str) -> None:
        """One answer: the list of files, or bytes of one."""
        if path.startswith("/api/models/"):
            siblings = [file.describe() for file in self.files.values()]
            body = json.dumps({"id": NAME, "sha": COMMIT, "siblings": siblings}).encode()
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            return
        file = self.files[path.rpartition("/")[2]]
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, end = int(first or 0), int(last) + 1 if last else file.size
        head = f"HTTP/1.1 {206 if wanted else 200} OK\r\nContent-Length: {end - start}\r\n"
        head += f"Content-Range: bytes {start}-{end - 1}/{file.size}\r\n" if wanted else ""
        connection.sendall(head.encode() + b"\r\n")
        while start < end:
            count = self.send(connection, file, start, min(STEP, end - start))
            start += count
            if self.limiter:
                time.sleep(max(0.0, self.limiter.take(count)))

    def send(self, connection: socket.socket, file: File, start: int, count: int) -> int:
        """Send some bytes of a file; those on the disk without reading them."""
        if file.table is None:
            return os.sendfile(connection.fileno(), file.file.fileno(), start, min(count, 256 << 10))
        data = file.read(start, count)
        connection.sendall(data)
        return len(data)


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rate", type=float, default=0, help="megabytes per second, all connections together")
    parser.add_argument("--sparse", action="store_true", help="make the weights as they are read")
    options = parser.parse_args()
    hub = Hub(options.folder, options.rate * 1e6, options.sparse)
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    while True:
        threading.Thread(target=hub.serve, args=(listener.accept()[0],), daemon=True).start()


if __name__ == "__main__":
    main()
