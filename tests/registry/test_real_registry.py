"""Models in a real registry, Debian's `docker-registry`, with a login and over TLS."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from registry.errors import AccessDenied, ModelNotFound, SourceUnavailable
from registry.names import parse
from registry.net.hub import Hub
from registry.net.network import Network
from registry.net.retries import DOWNLOADS, FETCHES
from registry.sources.opening import Source, open_source
from tests.daemon import wait_until
from tests.oci import MODELPACK, described, digest

PROGRAM = shutil.which("docker-registry")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="docker-registry is not installed")
# bcrypt of `secret`, with the fewest rounds.
HTPASSWD = "me:$2y$04$5e24Z3HHgxVgEYN2VMBm6eBoVRB4YVBo96sNAFnZ0nv/tri4iV8wG\n"
WEIGHTS = b"GGUF" + bytes(range(256)) * 40_000
TYPE = "application/vnd.oci.image.manifest.v1+json"
LAYERS = [described(MODELPACK + "weight.v1.raw", WEIGHTS, {"org.cncf.model.filepath": "tale.gguf"})]


class Running:
    """A registry on a free port of this machine."""

    def __init__(self, place: Path, *, login: bool = False, tls: tuple[Path, Path] | None = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        place.mkdir()
        config = ["version: 0.1", "log: {level: error}", f"storage: {{filesystem: {{rootdirectory: {place}/data}}}}"]
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

    def push(self, name: str, tag: str) -> str:
        """Put the model there, as a client of any other kind does; the digest of its manifest."""
        for data in (WEIGHTS, b"{}"):
            begun = self.send("POST", f"/v2/{name}/blobs/uploads/")
            place = urlsplit(begun.headers["Location"])
            target = f"{place.path}?{place.query}{'&' if place.query else ''}digest={digest(data)}"
            assert self.send("PUT", target, data).status == 201
        config = described("application/vnd.cncf.model.config.v1+json", b"{}")
        manifest = json.dumps({"schemaVersion": 2, "mediaType": TYPE, "config": config, "layers": LAYERS}).encode()
        assert self.send("PUT", f"/v2/{name}/manifests/{tag}", manifest, **{"Content-Type": TYPE}).status == 201
        return digest(manifest)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        self.log.close()

    def open(self, text: str, login: str = "") -> Source:
        logins = ((f"{self.host}:{self.port}", login),) if login else ()
        network = Network(
            context=self.context,
            fetches=replace(FETCHES, shortest=0.001, longest=0.01),
            downloads=replace(DOWNLOADS, shortest=0.001, longest=0.01),
        ).with_hub(Hub("", registries=(f"{self.scheme}://{self.host}:{self.port}",), logins=logins))
        return open_source(parse(f"{self.host}:{self.port}/{text}"), "", network)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with closing(Running(tmp_path_factory.mktemp("r") / "plain")) as running:
        yield running


def content(source: Source) -> bytes:
    with closing(source), closing(source.open("tale.gguf")) as reader:
        data = bytearray(source.size("tale.gguf"))
        reader.readinto(memoryview(data))
        reader.finish()
        return bytes(data)


def test_what_was_pushed_is_pulled_by_tag_and_by_digest(registry: Running) -> None:
    pinned = registry.push("ns/tale", "v1")
    for text in ("ns/tale:v1", f"ns/tale@{pinned}", f"ns/tale:v2@{pinned}"):
        assert content(registry.open(text)) == WEIGHTS
    for text in ("ns/tale:v2", "ns/other:v1", f"ns/tale@sha256:{'0' * 64}"):
        with pytest.raises(ModelNotFound):
            registry.open(text)


def test_a_login_opens_what_is_not_for_everybody(tmp_path: Path) -> None:
    with closing(Running(tmp_path / "closed", login=True)) as registry:
        registry.push("ns/tale", "v1")
        assert content(registry.open("ns/tale:v1", "me:secret")) == WEIGHTS
        for login in ("", "me:wrong"):
            with pytest.raises(AccessDenied):
                registry.open("ns/tale:v1", login)


def test_over_tls_with_a_certificate_that_is_known(tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    options = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    more = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([openssl, "req", *options, *more], check=True, capture_output=True)
    with closing(Running(tmp_path / "secure", tls=(certificate, key))) as registry:
        registry.push("ns/tale", "v1")
        assert content(registry.open("ns/tale:v1")) == WEIGHTS
        registry.context = ssl.create_default_context()
        with pytest.raises(SourceUnavailable, match="certificate"):
            registry.open("ns/tale:v1")
