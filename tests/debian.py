"""Debian's `docker-registry` on a port of this machine, where it is installed: with a login, over TLS."""

from __future__ import annotations

import base64
import http.client
import shutil
import socket
import ssl
import subprocess
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from registry.names import parse
from registry.net.hub import Hub
from registry.net.network import Network
from registry.net.retries import DOWNLOADS, FETCHES
from registry.sources.opening import Source, open_source
from tests.daemon import wait_until

PROGRAM = shutil.which("docker-registry")
# bcrypt of `secret`, with the fewest rounds.
HTPASSWD = "me:$2y$04$5e24Z3HHgxVgEYN2VMBm6eBoVRB4YVBo96sNAFnZ0nv/tri4iV8wG\n"


class Running:
    """A registry on a free port of this machine."""

    def __init__(self, place: Path, *, login: bool = False, tls: tuple[Path, Path] | None = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        place.mkdir()
        config = [
            "version: 0.1",
            "log: {level: error}",
            f"storage: {{filesystem: {{rootdirectory: {place}/data}}, delete: {{enabled: true}}}}",
        ]
        secure = f", tls: {{certificate: {tls[0]}, key: {tls[1]}}}" if tls else ""
        config.append(f"http: {{addr: '127.0.0.1:{port}'{secure}}}")
        if login:
            (place / "htpasswd").write_text(HTPASSWD)
            config.append(f"auth: {{htpasswd: {{realm: test, path: {place}/htpasswd}}}}")
        (place / "config.yml").write_text("\n".join(config))
        self.host, self.port, self.scheme = "localhost", port, "https" if tls else "http"
        self.context = ssl.create_default_context(cafile=str(tls[0])) if tls else None
        self.log = (place / "log").open("wb")
        command = [str(PROGRAM), "serve", str(place / "config.yml")]
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        wait_until(self.answers, 10)

    def answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def send(self, method: str, target: str, body: bytes = b"", **headers: str) -> http.client.HTTPResponse:
        connection = (
            http.client.HTTPSConnection(self.host, self.port, context=self.context)
            if self.context
            else http.client.HTTPConnection(self.host, self.port)
        )
        with closing(connection):
            pair = base64.b64encode(b"me:secret").decode()
            connection.request(method, target, body, {"Authorization": f"Basic {pair}"} | headers)
            answer = connection.getresponse()
            answer.read()
            return answer

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        self.log.close()

    def network(self, login: str = "", **more: Any) -> Network:
        """The way there, with short pauses between tries."""
        logins = ((f"{self.host}:{self.port}", login),) if login else ()
        pauses: dict[str, float] = {"shortest": 0.001, "longest": 0.01}
        retries = {"fetches": replace(FETCHES, **pauses), "downloads": replace(DOWNLOADS, **pauses)}
        network = Network(**retries, **{"context": self.context} | more)
        return network.with_hub(Hub("", registries=(f"{self.scheme}://{self.host}:{self.port}",), logins=logins))

    def open(self, text: str, login: str = "") -> Source:
        """A model there, as a pull reads it."""
        return open_source(parse(f"{self.host}:{self.port}/{text}"), "", self.network(login))


def certificate(place: Path) -> tuple[Path, Path] | None:
    """A certificate of localhost and its key, None without openssl."""
    openssl = shutil.which("openssl")
    if openssl is None:
        return None
    key, found = place / "key.pem", place / "cert.pem"
    options = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    more = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(found)]
    subprocess.run([openssl, "req", *options, *more], check=True, capture_output=True)
    return found, key
