"""The ranged download against `curl`, from a server on this machine: throughput and CPU time, as ratios in one run.

    python -m benchmarks.download [--size MB] [--repeat N]

The server is a process of its own (sendfile over plain HTTP, so that it costs little); rows differ in its rate, shared
by all connections, in TLS, and in a rate per connection, as a CDN may have. curl writes to /dev/null; ours hashes too
where it says so.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from registry import sha256
from registry.net.download import Download
from registry.net.locate import Remote
from registry.net.network import Limiter, Network
from registry.net.verify import Verified

MB = 1_000_000
STEP = 256 * 1024


class Server:
    """A file at every path: 200 or 206. `rate` in bytes/s for all, `each` for one connection, 0 for no limit."""

    def __init__(self, path: Path, rate: float, each: float, tls: ssl.SSLContext | None) -> None:
        self.file = path.open("rb")
        self.size = path.stat().st_size
        self.limiter = Limiter(rate) if rate else None
        self.each, self.tls = each, tls

    def serve(self, connection: socket.socket) -> None:
        """Answer the requests of one connection."""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls:
            connection = self.tls.wrap_socket(connection, server_side=True)
        limiters = [limiter for limiter in (self.limiter, Limiter(self.each) if self.each else None) if limiter]
        reader = connection.makefile("rb")
        try:
            while reader.readline():
                first, end, status = 0, self.size, "200 OK"
                while (line := reader.readline().strip().lower()) != b"":
                    if line.startswith(b"range: bytes="):
                        a, _, b = line[13:].partition(b"-")
                        first, end, status = int(a), int(b) + 1 if b else self.size, "206 Partial Content"
                head = f'HTTP/1.1 {status}\r\nContent-Length: {end - first}\r\nETag: "x"\r\n'
                head += f"Content-Range: bytes {first}-{end - 1}/{self.size}\r\n" if "206" in status else ""
                connection.sendall(head.encode() + b"\r\n")
                self.send(connection, first, end, limiters)
        except OSError:
            pass
        connection.close()

    def send(self, connection: socket.socket, at: int, end: int, limiters: list[Limiter]) -> None:
        """Send bytes at … end of the file at the rates wanted."""
        while at < end:
            most = min(end - at, STEP if limiters else 16 * STEP)
            if self.tls:
                data = os.pread(self.file.fileno(), most, at)
                connection.sendall(data)
                count = len(data)
            else:
                count = os.sendfile(connection.fileno(), self.file.fileno(), at, most)
            at += count
            if limiters:
                time.sleep(max(0.0, *(limiter.take(count) for limiter in limiters)))


def serve(path: Path, rate: float, each: float, keys: Path | None) -> None:
    """Be the server: print the port, then answer for ever."""
    context = None
    if keys:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(keys / "cert", keys / "key")
    server = Server(path, rate, each, context)
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    print(listener.getsockname()[1], flush=True)
    while True:
        threading.Thread(target=server.serve, args=(listener.accept()[0],), daemon=True).start()


@contextmanager
def running(path: Path, rate: float, each: float, keys: Path | None) -> Iterator[str]:
    """The server as a child; its URL."""
    command = [sys.executable, "-m", "benchmarks.download", "--serve", str(path), str(rate), str(each), str(keys or "")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout
    try:
        yield f"{'https' if keys else 'http'}://127.0.0.1:{child.stdout.readline().strip()}/blob"
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def timed(action: Callable[[], None], who: int) -> tuple[float, float]:
    """Seconds of wall and of CPU time (ours, or our children's)."""
    before, started = resource.getrusage(who), time.perf_counter()
    action()
    wall, after = time.perf_counter() - started, resource.getrusage(who)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def with_curl(url: str, keys: Path | None) -> None:
    """One connection, to nowhere."""
    trust = ["--cacert", str(keys / "cert")] if keys else []
    subprocess.run(["curl", "-sf", "-o", os.devnull, *trust, url], check=True)


def with_ours(url: str, size: int, keys: Path | None, digest: str | None) -> None:
    """As a pull does it, hashed where a digest is given."""
    context = ssl.create_default_context(cafile=str(keys / "cert")) if keys else None
    with Download(Remote(url, size, "blob"), Network(context=context)) as chunks:
        if digest:
            Verified(chunks, "blob", size, digest).finish()
        else:
            assert sum(len(chunk) for chunk in chunks) == size


def row(name: str, path: Path, digest: str, setting: tuple[float, float, Path | None], repeat: int) -> None:
    """Measure curl, ours, and ours with the hash in turn, and print medians."""
    size, keys = path.stat().st_size, setting[2]
    results: dict[str, list[tuple[float, float]]] = {"curl": [], "ours": [], "ours + hash": []}
    with running(path, *setting) as url:
        for _ in range(repeat):
            results["curl"].append(timed(lambda: with_curl(url, keys), resource.RUSAGE_CHILDREN))
            results["ours"].append(timed(lambda: with_ours(url, size, keys, None), resource.RUSAGE_SELF))
            results["ours + hash"].append(timed(lambda: with_ours(url, size, keys, digest), resource.RUSAGE_SELF))
    baseline = statistics.median(wall for wall, _ in results["curl"])
    for who, times in results.items():
        wall = statistics.median(wall for wall, _ in times)
        cpu = statistics.median(cpu for _, cpu in times) / size * 1e9
        print(f"{name:24} {who:12} {size / wall / MB:7.0f} MB/s {baseline / wall:6.2f} × curl {cpu:6.2f} CPU s/GB")


def make(folder: Path, size: int) -> str:
    """A file of random bytes and a certificate; returns the file's digest."""
    data = os.urandom(size)
    (folder / "blob").write_bytes(data)
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test"
    options = ["-keyout", folder / "key", "-out", folder / "cert", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command.split(), *options], check=True, capture_output=True)
    return "sha256:" + hashlib.sha256(data).hexdigest()


def main() -> None:
    """Run the rows, or the server."""
    if sys.argv[1:2] == ["--serve"]:
        path, rate, each, keys = sys.argv[2:]
        serve(Path(path), float(rate), float(each), Path(keys) if keys else None)
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=500, help="megabytes to transfer (default 500)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of which the median counts (default 3)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digest = make(folder, options.size * MB)
        print(f"{options.size} MB, hash by {sha256.engine()}")
        row("100 MB/s", folder / "blob", digest, (100 * MB, 0, None), options.repeat)
        row("100 MB/s, TLS", folder / "blob", digest, (100 * MB, 0, folder), options.repeat)
        row("20 MB/s per connection", folder / "blob", digest, (0, 20 * MB, None), 1)
        row("no limit", folder / "blob", digest, (0, 0, None), options.repeat)
        row("no limit, TLS", folder / "blob", digest, (0, 0, folder), options.repeat)


if __name__ == "__main__":
    main()
