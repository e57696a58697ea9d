"""A relay between a client and a server on loopback, which counts bytes and resets connections in their middle.

with Relay(server_port, up=3_000_000) as relay:
    ...     # a client of `relay.port` is cut off once, when it has sent so many bytes
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading


class Relay:
    """The relay. `up` and `down`: bytes to and from the server after which a connection is reset, once; 0 for never."""

    def __init__(self, target: int, *, up: int = 0, down: int = 0) -> None:
        self._target, self._limits = target, {"up": up, "down": down}
        self.carried = {"up": 0, "down": 0}
        self.cuts = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Relay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for each in self._sockets:
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except ConnectionRefusedError:
                    client.close()
                    continue
                self._sockets += [client, server]
                for way in (("up", client, server), ("down", server, client)):
                    threading.Thread(target=self._carry, args=way, daemon=True).start()

    def _carry(self, way: str, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                if self._cuts(way, len(data)):
                    raise ConnectionResetError
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:  # then the other side hears of it at once too
            for each in (source, sink):
                with contextlib.suppress(OSError):
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    each.shutdown(socket.SHUT_RDWR)

    def _cuts(self, way: str, count: int) -> bool:
        """Whether these bytes are lost, and their connection with them."""
        with self._lock:
            self.carried[way] += count
            if not 0 < self._limits[way] <= self.carried[way]:
                return False
            self._limits[way] = 0
            self.cuts += 1
            return True
