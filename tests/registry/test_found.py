"""Models of other programs: found where they lie, taken over without a copy, and never trusted to stay as they were."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import closing
from pathlib import Path

import pytest

from registry.errors import DigestMismatch, ModelNotFound, RegistryError, SourceUnavailable, StoreDamaged
from registry.names import Name, parse
from registry.net.network import Network
from registry.sources.found import find_models
from registry.sources.opening import Source, open_source
from registry.store import fsops, manifest, sharing
from registry.store.layers import Staged
from registry.store.partial import Partial, PullFacts
from registry.store.store import Store
from tests.oci import MANIFEST, OLLAMA, described, digest

WEIGHTS = b"GGUF" + bytes(range(256)) * 300
NAME = Name("local", "library", "tale", "Q4_0")


def ollama_store(root: Path, weights: bytes = WEIGHTS, name: str = "registry.ollama.ai/library/tale/3b") -> Path:
    """A store of Ollama's with one model; the path of its manifest."""
    layers = [(OLLAMA + "model", weights), (OLLAMA + "system", b"Be brief."), (OLLAMA + "params", b'{"stop": ["x"]}')]
    (root / "blobs").mkdir(parents=True)
    for _, data in layers:
        (root / "blobs" / digest(data).replace(":", "-")).write_bytes(data)
    path = root / "manifests" / name
    path.parent.mkdir(parents=True)
    body = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described("application/json", b"{}")}
    path.write_text(json.dumps(body | {"layers": [described(*layer) for layer in layers]}))
    return path


def opened(path: Path, revision: str = "") -> Source:
    return open_source(parse(str(path)), "", Network(), revision)


def test_everything_that_is_there_is_found(tmp_path: Path) -> None:
    path = ollama_store(tmp_path / "ollama")
    (tmp_path / "ollama" / "manifests" / "junk").write_text("x")
    (path.parent / "broken").write_text("{")
    snapshot = tmp_path / "hub" / "models--org--repo" / "snapshots" / ("a" * 40)
    studio = tmp_path / "studio" / "publisher" / "repo"
    for folder in (snapshot, studio, tmp_path / "hub" / "datasets--a--b" / "snapshots" / "x"):
        folder.mkdir(parents=True)
        (folder / "x.gguf").write_bytes(WEIGHTS)
    found = find_models(tmp_path / "ollama", tmp_path / "hub", tmp_path / "studio")
    assert [(each.program, each.title, each.name, each.size) for each in found if each.program != "package"] == [
        ("ollama", "tale:3b", str(path), len(WEIGHTS)),
        ("hugging face", "org/repo", str(snapshot), len(WEIGHTS)),
        ("lm studio", "publisher/repo", str(studio), len(WEIGHTS)),
    ]
    nowhere = find_models(tmp_path / "no", path, tmp_path / "nor")
    assert [each for each in nowhere if each.program != "package"] == []


def test_a_pipe_in_the_place_of_a_manifest_is_not_waited_for(tmp_path: Path) -> None:
    path = ollama_store(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(SourceUnavailable, match="no regular file"):
        open_source(parse(str(path)), "", Network())


def test_an_adapter_in_ollamas_store_lies_beside_the_weights(tmp_path: Path) -> None:
    path, data = ollama_store(tmp_path), b"GGUF adapter"
    (tmp_path / "blobs" / digest(data).replace(":", "-")).write_bytes(data)
    body = json.loads(path.read_text())
    path.write_text(json.dumps(body | {"layers": [*body["layers"], described(OLLAMA + "adapter", data)]}))
    with closing(opened(path)) as source:
        assert (source.names(), source.companions.adapters) == (["model.gguf"], ("adapter.gguf",))
        assert source.read("adapter.gguf", 0, len(data)) == data
        with closing(source.open("adapter.gguf")) as reader:
            reader.finish()


def test_a_model_of_ollamas_store_is_read_with_its_settings(tmp_path: Path) -> None:
    path = ollama_store(tmp_path)
    reference = parse(str(path))
    assert (reference.kind, reference.name.display, reference.text) == ("store", "tale:3b", str(path))
    assert parse(reference.origin).kind == "ollama"
    with closing(opened(path)) as source, closing(source.open("model.gguf")) as reader:
        data = bytearray(source.size("model.gguf"))
        reader.readinto(memoryview(data))
        reader.finish()
        assert bytes(data) == WEIGHTS
        assert (source.companions.system, source.companions.params) == ("Be brief.", {"stop": ["x"]})
    blob = tmp_path / "blobs" / digest(WEIGHTS).replace(":", "-")
    blob.write_bytes(WEIGHTS[:-1] + b"?")
    with closing(opened(path)) as source, closing(source.open("model.gguf")) as reader, pytest.raises(DigestMismatch):
        reader.finish()
    blob.write_bytes(b"short")
    with closing(opened(path)) as source, pytest.raises(RegistryError, match="its manifest says otherwise"):
        source.size("model.gguf")
    with pytest.raises(ModelNotFound, match="has changed"):
        opened(path, revision="sha256:" + "0" * 64)
    path.write_text("[" * 9999)
    with pytest.raises(RegistryError, match="no manifest of a model"):
        opened(path)
    path.unlink()
    with pytest.raises(ModelNotFound, match="there is no"):
        opened(path)


def take_over(store: Store, path: Path, *, link: bool = True, place: bool = False) -> str:
    """Commit the file at a path as the model `tale:Q4_0`, without a copy if that can be; how it was taken over."""
    ingest = store.begin("tale")
    partial = Partial(ingest.folder)
    try:
        assert partial.begin(PullFacts("tale", "s", "r", "Q4_0", "why", "print", path.stat().st_size)) is None
        with path.open("rb") as file:
            adopted = partial.adopt(file.fileno(), link=link, place=path if place else None)
            state = sharing.state_of(os.fstat(file.fileno())) if adopted else ""
            partial.write(file.read())
        sha256, size = partial.finish()
    finally:
        partial.close()
    layers = [Staged.file(ingest.data, manifest.MODEL, sha256, size, state)]
    store.commit(ingest, layers, NAME, {"model_format": "gguf"})
    return adopted


@pytest.fixture
def owned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of another program's, on a disk that knows no reflinks."""
    monkeypatch.setattr(sharing, "reflink", lambda source, target: False)
    path = tmp_path / "theirs.gguf"
    path.write_bytes(WEIGHTS)
    path.chmod(0o640)
    return path


def test_a_hard_link_is_no_copy_and_its_owners_mode_stays(owned: Path, tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        assert take_over(store, owned) == "link"
        blob = store.resolve("tale").blob
        assert blob.samefile(owned) and owned.stat().st_mode & 0o777 == 0o640
        store.delete(store.resolve("tale"))
        store.collect(())
    assert owned.read_bytes() == WEIGHTS and owned.stat().st_nlink == 1
    assert not list((tmp_path / "store" / "shared").iterdir())


def test_a_shared_file_that_changed_is_hashed_again_before_it_is_used(owned: Path, tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        take_over(store, owned)
    os.utime(owned)  # another time, the same bytes
    with Store.open(tmp_path / "store") as store:
        assert store.resolve("tale").blob.samefile(owned)
        with owned.open("r+b") as file:
            file.seek(1000)
            file.write(b"????")
        with pytest.raises(StoreDamaged, match="another program"):
            store.resolve("tale")
    with Store.open(tmp_path / "store") as store:
        with pytest.raises(StoreDamaged, match="another program"):
            store.resolve("tale")
        with owned.open("r+b") as file:
            file.write(WEIGHTS)
        assert store.resolve("tale").size >= len(WEIGHTS)
        owned.unlink()
        assert store.resolve("tale").blob.read_bytes() == WEIGHTS


def test_what_may_not_be_linked_is_copied(owned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(tmp_path / "store") as store:
        monkeypatch.setattr(sharing, "link", lambda source, target: False)
        assert take_over(store, owned) == ""
        blob = store.resolve("tale").blob
    assert blob.read_bytes() == WEIGHTS and not blob.samefile(owned)


def test_another_attempt_never_writes_into_a_linked_file(owned: Path, tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        ingest = store.begin("tale")
        facts = PullFacts("tale", "s", "r", "Q4_0", "why", "print", 9)
        partial = Partial(ingest.folder)
        partial.begin(facts)
        with owned.open("rb") as file:
            assert partial.adopt(file.fileno(), link=True) == "link"
        partial.rewind()
        partial.begin(facts)
        partial.write(b"something")
        partial.close()
        store.abandon(ingest)
    assert owned.read_bytes() == WEIGHTS


class Stop(BaseException):
    """The end of a process, as far as the store is concerned."""


def test_an_end_at_any_step_leaves_the_owners_file_and_a_whole_store(owned: Path, tmp_path: Path) -> None:
    """The next owner of the store finds the model whole, or not at all, and can take it over then."""
    step, stopped = 0, True
    while stopped:
        step, stopped = step + 1, False
        root, count = tmp_path / str(step), [0]

        def hook(when: str, operation: str, path: Path, count: list[int] = count, last: int = step) -> None:
            count[0] += when == "before"
            if count[0] >= last:
                raise Stop

        with Store.open(root) as store:
            fsops.hook = hook
            try:
                take_over(store, owned)
            except Stop:
                stopped = True
            finally:
                fsops.hook = None
        assert owned.read_bytes() == WEIGHTS and owned.stat().st_mode & 0o777 == 0o640
        with Store.open(root) as store:
            for model in store.models():
                assert not model.problem and hashlib.sha256(model.blob.read_bytes()).hexdigest() in model.blob_digest
            store.collect(())
            take_over(store, owned)
            assert store.resolve("tale").blob.samefile(owned)
    assert step > 20
