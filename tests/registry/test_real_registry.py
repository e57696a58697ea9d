"""Models to and from a real registry, Debian's `docker-registry`: by its own log, with a login, over TLS, by skopeo."""

from __future__ import annotations

import json
import shutil
import ssl
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from registry.errors import AccessDenied, ModelNotFound, SourceUnavailable
from registry.names import parse
from registry.sources.opening import Source, open_source
from registry.store.store import Store
from registry.targets import upload
from registry.targets.pushing import Push
from tests.debian import PROGRAM, Running, certificate
from tests.oci import MODELPACK, described, digest
from tests.registry.sending import DATA, LICENSE, outcomes, push, put
from tests.relay import Relay

PIECE = 1 << 20
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


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "PIECE", PIECE)


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


def test_a_model_comes_back_from_a_real_registry_with_the_same_bytes(store: Store, registry: Running) -> None:
    model, host = put(store), f"localhost:{registry.port}"
    lines = push(store, model, host, "ns/tale:v1", registry.network())
    assert lines[-1]["digest"] == f"sha256:{model.digest}" and outcomes(lines) == {"sent"}
    for text in ("ns/tale:v1", f"ns/tale@sha256:{model.digest}"):
        source = registry.open(text)
        assert (source.names(), source.companions.system) == (["model.gguf"], "Be brief.")
        assert source.companions.licenses == (LICENSE,)
        assert content_of(source, "model.gguf") == DATA
    assert outcomes(push(store, model, host, "ns/tale:v2", registry.network())) == {"there"}
    assert outcomes(push(store, model, host, "ns/other:v1", registry.network())) == {"mounted"}


def test_a_mounted_blob_is_not_sent_by_the_registrys_own_log(store: Store, registry: Running) -> None:
    model, host = put(store), f"localhost:{registry.port}"
    push(store, model, host, "here/tale:v1", registry.network())
    sent = [row for row in registry.asked("here/tale/blobs/uploads/") if row[0] in ("PATCH", "PUT")]
    assert len(sent) > len(DATA) // PIECE
    push(store, model, host, "there/tale:v1", registry.network())
    blobs = [f"there/tale/blobs/{layer.digest}" for layer in store.manifest(model)[1].blobs]
    mounts = [f"there/tale/blobs/uploads/?mount={blob.rpartition('/')[2]}&from=here/tale" for blob in blobs]
    asked = [*(("HEAD", blob, 404) for blob in blobs), *(("POST", mount, 201) for mount in mounts)]
    assert sorted(registry.asked("there/")) == sorted([*asked, ("PUT", "there/tale/manifests/v1", 201)])
    assert content_of(registry.open("there/tale:v1"), "model.gguf") == DATA


def test_an_upload_that_is_cut_within_a_piece_is_begun_anew_and_right(store: Store, registry: Running) -> None:
    model = put(store)
    with Relay(registry.port, up=5 * PIECE // 2) as relay:
        push(store, model, f"localhost:{relay.port}", "cut/tale:v1", registry.network(port=relay.port))
        # This registry cannot be asked any more how far it is, because it has a part of a piece.
        assert relay.cuts == 1 and relay.carried["up"] < 5 * PIECE // 2 + len(DATA) + PIECE // 2
    assert content_of(registry.open("cut/tale:v1"), "model.gguf") == DATA


@pytest.mark.parametrize("whose", ["the registry lost its power", "somebody pressed Ctrl-C"])
def test_a_push_goes_on_where_it_was_by_another_daemon(tmp_path: Path, whose: str) -> None:
    failed = False

    def fail(pushing: Push, line: dict[str, Any]) -> None:
        nonlocal failed
        if not failed and PIECE * 5 // 2 <= line.get("completed", 0) < len(DATA):
            failed = True
            registry.kill() if "registry" in whose else pushing.abort()

    with closing(Running(tmp_path / "r")) as registry, Relay(registry.port) as relay:
        network, host = registry.network(port=relay.port), f"localhost:{relay.port}"
        with Store.open(tmp_path / "store") as store, pytest.raises(SourceUnavailable):
            push(store, put(store), host, "ns/tale:v1", network, hear=fail)
        before = relay.carried["up"]
        if registry.process.poll() is not None:
            registry.start()
        with Store.open(tmp_path / "store") as store:
            push(store, store.resolve("org/tale"), host, "ns/tale:v1", network)
        pieces = 2 if "registry" in whose else 3
        assert relay.carried["up"] - before < len(DATA) - pieces * PIECE + PIECE // 2
        assert content_of(registry.open("ns/tale:v1"), "model.gguf") == DATA


def test_a_pull_that_is_cut_fetches_only_the_rest(registry: Running) -> None:
    pushed(registry, "short/tale", "v1")
    with Relay(registry.port, down=len(WEIGHTS) // 2) as relay:
        text = f"localhost:{relay.port}/short/tale:v1"
        assert content(open_source(parse(text), "", registry.network(port=relay.port))) == WEIGHTS
        assert relay.cuts == 1 and relay.carried["down"] < len(WEIGHTS) * 5 // 4


def test_a_modelpack_has_its_making_as_annotations_and_is_read_again(store: Store, registry: Running) -> None:
    model, host = put(store), f"localhost:{registry.port}"
    found = push(store, model, host, "pack/tale:v1", registry.network(), pack=True)[-1]["digest"]
    source = registry.open(f"pack/tale@{found}")
    assert content_of(source, "tale-Q8_0.gguf") == DATA
    with closing(registry.open("pack/tale:v1")) as opened:
        beside = opened.companions
    assert (dict(beside.params), beside.system, beside.licenses) == ({"stop": ["x"]}, "Be brief.", (LICENSE,))
    document = json.loads(fetched(registry, "pack/tale", "v1"))
    notes = document["annotations"]
    assert document["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert notes["org.opencontainers.image.licenses"] == "Apache License 2.0"
    assert notes["org.opencontainers.image.source"] == "hf.co/org/tale"
    assert notes["io.lm.recipe"] == "Q8_0: it fits" and "sha256:b" in notes["io.lm.source-digests"]


@pytest.mark.slow
def test_what_the_registry_deleted_is_sent_again(store: Store, registry: Running) -> None:
    model, host = put(store), f"localhost:{registry.port}"
    push(store, model, host, "gone/tale:v1", registry.network())
    for layer in store.manifest(model)[1].blobs:
        assert registry.send("DELETE", f"/v2/gone/tale/blobs/{layer.digest}").status == 202
    assert registry.send("DELETE", f"/v2/gone/tale/manifests/sha256:{model.digest}").status == 202
    push(store, model, host, "gone/tale:v1", registry.network())
    source = registry.open("gone/tale:v1")
    assert content_of(source, "model.gguf") == DATA


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_a_login_is_needed_where_the_registry_wants_one(store: Store, tmp_path: Path, secure: bool) -> None:
    pair = certificate(tmp_path) if secure else None
    if secure and pair is None:
        pytest.skip("openssl is not installed")
    with closing(Running(tmp_path / "closed", login=True, tls=pair)) as closed:
        model, host = put(store), f"localhost:{closed.port}"
        push(store, model, host, "ns/tale:v1", closed.network("me:secret"))
        source = closed.open("ns/tale:v1", "me:secret")
        assert content_of(source, "model.gguf") == DATA
        for login in ("", "me:wrong"):
            with pytest.raises(AccessDenied, match="does not let"):
                push(store, model, host, "ns/tale:v2", closed.network(login))


def skopeo(*arguments: str) -> bytes:
    done = subprocess.run(["skopeo", "--insecure-policy", *arguments], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_skopeo_reads_what_was_pushed_and_its_copy_is_pulled(store: Store, registry: Running) -> None:
    model, host = put(store), f"localhost:{registry.port}"
    push(store, model, host, "skopeo/plain:v1", registry.network())
    # It copies no image whose layers have Ollama's types, but reads it.
    raw = skopeo("inspect", "--tls-verify=false", "--raw", f"docker://{host}/skopeo/plain:v1")
    assert raw == store.manifest(model)[0]
    wanted = push(store, model, host, "skopeo/pack:v1", registry.network(), pack=True)[-1]["digest"]
    flags = ["--src-tls-verify=false", "--dest-tls-verify=false"]
    skopeo("copy", *flags, f"docker://{host}/skopeo/pack:v1", f"docker://{host}/copied/pack:v1")
    copied = registry.open("copied/pack:v1")
    assert copied.revision == wanted
    assert content_of(copied, "tale-Q8_0.gguf") == DATA


def content_of(source: Any, name: str) -> bytes:
    with closing(source), closing(source.open(name)) as reader:
        data = bytearray(source.size(name))
        reader.readinto(memoryview(data))
        reader.finish()
        return bytes(data)


def fetched(registry: Running, name: str, tag: str) -> bytes:
    accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
    request = urllib.request.Request(f"http://localhost:{registry.port}/v2/{name}/manifests/{tag}", headers=accept)
    with urllib.request.urlopen(request) as reply:
        return bytes(reply.read())
