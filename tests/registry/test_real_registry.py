"""Models in a real registry, Debian's `docker-registry`, with a login and over TLS."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from registry.errors import AccessDenied, ModelNotFound, SourceUnavailable
from registry.sources.opening import Source
from tests.debian import PROGRAM, Running, certificate
from tests.oci import MODELPACK, described, digest

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="docker-registry is not installed")
WEIGHTS = b"GGUF" + bytes(range(256)) * 40_000
TYPE = "application/vnd.oci.image.manifest.v1+json"
LAYERS = [described(MODELPACK + "weight.v1.raw", WEIGHTS, {"org.cncf.model.filepath": "tale.gguf"})]


def pushed(registry: Running, name: str, tag: str) -> str:
    """Put the model there, as a client of any other kind does; the digest of its manifest."""
    for data in (WEIGHTS, b"{}"):
        begun = registry.send("POST", f"/v2/{name}/blobs/uploads/")
        place = urlsplit(begun.headers["Location"])
        target = f"{place.path}?{place.query}{'&' if place.query else ''}digest={digest(data)}"
        assert registry.send("PUT", target, data).status == 201
    config = described("application/vnd.cncf.model.config.v1+json", b"{}")
    manifest = json.dumps({"schemaVersion": 2, "mediaType": TYPE, "config": config, "layers": LAYERS}).encode()
    assert registry.send("PUT", f"/v2/{name}/manifests/{tag}", manifest, **{"Content-Type": TYPE}).status == 201
    return digest(manifest)


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
    pinned = pushed(registry, "ns/tale", "v1")
    for text in ("ns/tale:v1", f"ns/tale@{pinned}", f"ns/tale:v2@{pinned}"):
        assert content(registry.open(text)) == WEIGHTS
    for text in ("ns/tale:v2", "ns/other:v1", f"ns/tale@sha256:{'0' * 64}"):
        with pytest.raises(ModelNotFound):
            registry.open(text)


def test_a_login_opens_what_is_not_for_everybody(tmp_path: Path) -> None:
    with closing(Running(tmp_path / "closed", login=True)) as registry:
        pushed(registry, "ns/tale", "v1")
        assert content(registry.open("ns/tale:v1", "me:secret")) == WEIGHTS
        for login in ("", "me:wrong"):
            with pytest.raises(AccessDenied):
                registry.open("ns/tale:v1", login)


def test_over_tls_with_a_certificate_that_is_known(tmp_path: Path) -> None:
    pair = certificate(tmp_path)
    if pair is None:
        pytest.skip("openssl is not installed")
    with closing(Running(tmp_path / "secure", tls=pair)) as registry:
        pushed(registry, "ns/tale", "v1")
        assert content(registry.open("ns/tale:v1")) == WEIGHTS
        registry.context = ssl.create_default_context()
        with pytest.raises(SourceUnavailable, match="certificate"):
            registry.open("ns/tale:v1")
