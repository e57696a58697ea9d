"""Debian's `docker-registry` on a port of this machine, where it is installed: with a login, over TLS."""

from __future__ import annotations

import base64
import http.client
import re
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
_ASKED = re.compile(r'"([A-Z]+) /v2/(\S*) HTTP/1.1" ([0-9]{3}) ')
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
            "log: {level: error, accesslog: {disabled: false}}",
            f"storage: {{filesystem: {{rootdirectory: {place}/data}}, delete: {{enabled: true}}}}",
        ]
        secure = f", tls: {{certificate: {tls[0]}, key: {tls[1]}}}" if tls else ""
        # With a secret of its own it knows after a restart which uploads were begun.
        config.append(f"http: {{addr: '127.0.0.1:{port}', secret: kept{secure}}}")
        if login:
            (place / "htpasswd").write_text(HTPASSWD)
            config.append(f"auth: {{htpasswd: {{realm: test, path: {place}/htpasswd}}}}")
        (place / "config.yml").write_text("\n".join(config))
        self.host, self.port, self.scheme = "localhost", port, "https" if tls else "http"
        self.context = ssl.create_default_context(cafile=str(tls[0])) if tls else None
        self.place = place
        self.start()

    def start(self) -> None:
        """Start it, on the port that it had before."""
        command = [str(PROGRAM), "serve", str(self.place / "config.yml")]
        with (self.place / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self.answers, 10)

    def asked(self, repository: str = "") -> list[tuple[str, str, int]]:
        """What it was asked, by its own log: method, path below `/v2/` and status; of one repository, or all."""
        rows = _ASKED.findall((self.place / "log").read_text())
        return [(row[0], row[1], int(row[2])) for row in rows if row[1].startswith(repository)]

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

    def kill(self) -> None:
        """End it without warning."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)

    def network(self, login: str = "", port: int = 0, **more: Any) -> Network:
        """The way there, with short pauses between tries; through a relay at `port`."""
        port = port or self.port
        logins = ((f"{self.host}:{port}", login),) if login else ()
        pauses: dict[str, float] = {"shortest": 0.001, "longest": 0.01}
        retries = {"fetches": replace(FETCHES, **pauses), "downloads": replace(DOWNLOADS, **pauses)}
        network = Network(**retries, **{"context": self.context} | more)
        return network.with_hub(Hub("", registries=(f"{self.scheme}://{self.host}:{port}",), logins=logins))

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
