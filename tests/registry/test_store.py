"""The store in use: what is committed is found, what is deleted goes, what is damaged is said and harms no other."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from registry.errors import BadName, DigestMismatch, ModelNotFound, StoreDamaged, StoreFailed, StoreLocked
from registry.names import parse
from registry.store import fsops, manifest
from registry.store.catalog import Model
from registry.store.layers import Staged
from registry.store.partial import Checkpoint, Partial, PullFacts
from registry.store.store import Store
from tests import storing
from tests.storing import weights


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


def put(store: Store, name: str, data: bytes = b"weights", source: str = "", chosen: bool = True) -> Model:
    return storing.put(store, name, data, {"model_format": "gguf", "lm": {"source": source}}, chosen=chosen)


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_a_committed_model_is_found(store: Store) -> None:
    model = put(store, "org/repo:Q4_K_M", b"abc", "org/repo")
    assert store.models() == [model] == [store.resolve("hf.co/org/repo:Q4_K_M")]
    assert model.name == "hf.co/org/repo:Q4_K_M"
    assert model.blob.read_bytes() == b"abc"
    assert (model.config["lm"], model.params) == ({"source": "org/repo"}, {"stop": ["x"]})
    assert model.size == sum(path.stat().st_size for path in (store.root / "blobs").iterdir())


def test_the_layout_is_ollamas(store: Store) -> None:
    model = put(store, "org/repo:Q4_K_M", b"abc")
    manifest_path = store.root / "manifests/hf.co/org/repo/Q4_K_M"
    data = manifest_path.read_bytes()
    manifest = json.loads(data)
    assert hashlib.sha256(data).hexdigest() == model.digest
    assert manifest["schemaVersion"] == 2
    assert manifest["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
    assert manifest["config"]["mediaType"] == "application/vnd.docker.container.image.v1+json"
    assert [layer["mediaType"].rpartition(".")[2] for layer in manifest["layers"]] == ["model", "params"]
    for layer in (manifest["config"], *manifest["layers"]):
        blob = store.root / "blobs" / layer["digest"].replace(":", "-")
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == layer["digest"].removeprefix("sha256:")
        assert blob.stat().st_size == layer["size"]
        assert blob.stat().st_mode & 0o777 == 0o444


def test_layers_of_any_media_type_are_kept_in_their_order(store: Store) -> None:
    """A projector beside the weights, say: a file of its own in the ingest, and another type in the manifest."""
    ingest = store.begin("x")
    ingest.data.write_bytes(b"w")
    projector = ingest.folder / "projector"
    projector.write_bytes(b"pp")
    more = Staged.file(projector, "application/x-projector", hashlib.sha256(b"pp").hexdigest(), 2)
    model = store.commit(ingest, [weights(ingest, b"w"), more], parse("demo:Q8_0").name, {})
    listed = json.loads((store.root / "manifests/local/library/demo/Q8_0").read_bytes())["layers"]
    assert [layer["mediaType"] for layer in listed] == [manifest.MODEL, "application/x-projector"]
    assert (store.root / "blobs" / listed[1]["digest"].replace(":", "-")).read_bytes() == b"pp"
    assert store.resolve("demo") == model
    assert store.collect(()) == 0


def test_nobody_else_may_look_inside(store: Store) -> None:
    put(store, "org/repo:Q4_K_M")
    for path in (store.root, *store.root.rglob("*")):
        assert path.stat().st_mode & 0o077 == (0o044 if path.parent.name == "blobs" else 0), path


@pytest.mark.parametrize(
    "text",
    ["tale:Q4_K_M", "tale", "TALE", "tale:q4_k_m", "tale:latest"],
)
def test_local_models_by_short_names(store: Store, text: str) -> None:
    put(store, "/models/tale:Q4_K_M", source="/models/tale")
    assert store.resolve(text).name == "tale:Q4_K_M"


@pytest.mark.parametrize(
    "text",
    [
        "hf.co/Org/Repo:Q4_K_M", "Org/Repo", "org/repo", "org/repo:q4_k_m", "hf.co/org/repo:latest",
        "huggingface.co/Org/Repo", "https://huggingface.co/Org/Repo:Q4_K_M", "https://hf.co/Org/Repo/tree/main",
    ],
)  # fmt: skip
def test_hub_models_by_any_spelling(store: Store, text: str) -> None:
    put(store, "Org/Repo:Q4_K_M")
    assert store.resolve(text).name == "hf.co/Org/Repo:Q4_K_M"


def test_a_bare_name_is_the_variant_chosen_automatically(store: Store) -> None:
    four, eight = put(store, "demo:Q4_K_M", b"4"), put(store, "demo:Q8_0", b"8", chosen=False)
    assert store.resolve("demo") == four
    store.choose(eight)
    assert store.resolve("demo") == eight
    put(store, "demo:BF16", b"16", chosen=False)
    assert store.resolve("demo") == eight
    store.delete(eight)
    assert store.resolve("demo").name == "demo:Q4_K_M"


def test_a_bare_name_is_the_variant_that_the_user_pinned(store: Store) -> None:
    four, eight = put(store, "demo:Q4_K_M", b"4"), put(store, "demo:Q8_0", b"8", chosen=False)
    store.pin(eight)
    put(store, "demo:Q4_K_M", b"newer")
    assert store.resolve("demo") == eight
    store.unpin(eight.key)
    assert store.resolve("demo").key == four.key
    store.pin(eight)
    store.delete(eight)
    put(store, "demo:Q8_0", b"8", chosen=False)
    assert store.resolve("demo").key == four.key, "a level that was removed is not pinned any more when it comes back"


def test_trying_one_more_level_never_changes_what_a_bare_name_means(store: Store) -> None:
    """No pull chose a level: a size that a pull noted decides, else the level that came first."""
    for level, size in (("Q5_K_M", 57_000), ("IQ1_S", 15_000), ("Q8_0", 80_000)):
        put(store, f"org/plain:{level}", bytes(size), chosen=False)
        noted = {"lm": {"source": "", "automatic_bytes": 50_000}}
        storing.put(store, f"org/noted:{level}", bytes(size), noted, chosen=False)
        assert store.resolve("org/plain").name == "hf.co/org/plain:Q5_K_M"
    assert store.resolve("org/noted").name == "hf.co/org/noted:Q5_K_M"
    store.delete(store.resolve("org/noted:Q5_K_M"))
    assert store.resolve("org/noted").name == "hf.co/org/noted:Q8_0"


def test_a_choice_that_cannot_be_noted_fails_no_pull(store: Store) -> None:
    (store.root / "chosen").write_text("in the way")
    assert put(store, "demo:Q8_0") == store.resolve("demo")


def test_two_folders_of_one_name_are_two_models(store: Store) -> None:
    paths = ("/a/tale", "/b/tale", "/c/b/tale", "/models/demo")
    for path in paths:
        for _ in range(2):  # a folder that comes again keeps its name
            ingest = store.begin(path)
            ingest.data.write_bytes(path.encode())
            layers = [weights(ingest, path.encode())]
            store.commit(ingest, layers, parse(f"{path}:Q8_0"), {"lm": {"source": path}})
    names = {path: store.resolve(path).name for path in paths}
    assert [names[path] for path in paths[:2]] == ["tale:Q8_0", "b-tale:Q8_0"]
    assert len(set(names.values())) == len(store.models()) == 4
    for path, name in names.items():
        assert store.resolve(name).blob.read_bytes() == path.encode()


def test_a_path_means_the_model_made_of_that_folder(store: Store) -> None:
    put(store, "/a/tale:Q8_0", source="/a/tale")
    assert store.resolve("/a/tale").name == "tale:Q8_0"
    with pytest.raises(ModelNotFound):
        store.resolve("/b/tale")


def test_a_budget_or_auto_is_decided_anew(store: Store) -> None:
    put(store, "org/repo:Q4_K_M")
    for text in ("org/repo:4GB", "org/repo:auto"):
        with pytest.raises(ModelNotFound):
            store.resolve(text)


def test_not_found_says_what_comes_close(store: Store) -> None:
    put(store, "/models/tale:Q4_K_M")
    for text, helpful in (("tail", "tale"), ("tale:Q6_K", "tale:Q4_K_M"), ("org/new", "lm pull hf.co/org/new")):
        with pytest.raises(ModelNotFound) as caught:
            store.resolve(text)
        assert f"`{text}`" in str(caught.value)
        assert helpful in caught.value.hint
    with pytest.raises(ModelNotFound) as caught:
        store.resolve("demo")
    assert "did you mean" not in caught.value.hint  # itself


def test_replacing_a_variant_frees_the_old_one(store: Store) -> None:
    put(store, "Org/Repo:Q8_0", b"old")
    put(store, "org/repo:q8_0", b"newer")
    assert [model.name for model in store.models()] == ["hf.co/Org/Repo:Q8_0"]
    assert store.collect(()) == 3
    assert store.resolve("org/repo").blob.read_bytes() == b"newer"


def test_deleting_leaves_what_others_share(store: Store) -> None:
    one, two = put(store, "one:Q8_0"), put(store, "org/two:Q8_0")
    store.delete(one)
    assert store.collect(()) == 0
    store.delete(two)
    assert store.collect(()) > 0
    assert files(store.root) == ["store.json", "store.lock"]
    assert not list((store.root / "manifests").iterdir())
    with pytest.raises(ModelNotFound):
        store.delete(two)


def test_what_a_worker_uses_stays(store: Store) -> None:
    model = put(store, "one:Q8_0")
    store.delete(model)
    store.collect({model.blob_digest})
    assert model.blob.exists()
    store.collect(())
    assert not model.blob.exists()


def test_a_file_on_its_way_survives_collection(store: Store) -> None:
    ingest = store.begin("x")
    ingest.data.write_bytes(b"half")
    store.collect(())
    assert ingest.data.exists()
    store.abandon(ingest)
    store.abandon(ingest)
    assert not ingest.folder.exists()


def test_abandoning_after_a_commit_does_nothing(store: Store) -> None:
    ingest = store.begin("x")
    ingest.data.write_bytes(b"w")
    store.commit(ingest, [weights(ingest, b"w")], parse("demo:Q8_0").name, {})
    store.abandon(ingest)
    assert store.resolve("demo").params == {}


@pytest.mark.parametrize("trouble", ["short", "pipe", "link", "missing", "untagged", "digest"])
def test_what_cannot_be_committed_leaves_nothing(store: Store, trouble: str) -> None:
    ingest, name, digest = store.begin("x"), parse("demo:Q8_0").name, hashlib.sha256(b"w").hexdigest()
    match trouble:
        case "short":
            ingest.data.write_bytes(b"")
        case "pipe":
            os.mkfifo(ingest.data)
        case "link":
            ingest.data.symlink_to("/etc/hostname")
        case "untagged":
            ingest.data.write_bytes(b"w")
            name = name.tagged(None)
        case "digest":
            ingest.data.write_bytes(b"w")
            digest = f"../{digest}"
    with pytest.raises((DigestMismatch, StoreDamaged, StoreFailed, BadName)):
        store.commit(ingest, [Staged.file(ingest.data, manifest.MODEL, digest, 1)], name, {})
    assert files(store.root) == ["store.json", "store.lock"]


@pytest.mark.parametrize(
    "damage",
    [b"", b"{", b"[" * 100_000, b"\xff", b'{"schemaVersion":2}', b"null", b"0" * (5 << 20),
     b'{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","config":'
     b'{"mediaType":"x","digest":"sha256:../../x","size":1},"layers":[]}'],
)  # fmt: skip
def test_a_damaged_manifest_harms_only_its_model(store: Store, damage: bytes) -> None:
    whole, broken = put(store, "one:Q8_0", b"1"), put(store, "two:Q8_0", b"2")
    (store.root / "manifests/registry.ollama.ai/library/two/Q8_0").write_bytes(damage)
    assert [model.name for model in store.models() if not model.problem] == [whole.name]
    assert next(model for model in store.models() if model.problem).name == broken.name
    with pytest.raises(StoreDamaged) as caught:
        store.resolve("two")
    assert "lm rm" in caught.value.hint
    assert store.collect(()) == 0
    assert broken.blob.exists()
    store.delete(store.find("two"))
    assert store.collect(()) > 0
    assert store.models() == [whole]


@pytest.mark.parametrize("how", ["missing", "short", "link", "config"])
def test_damaged_blobs_show_at_once(store: Store, how: str) -> None:
    model = put(store, "one:Q8_0", b"12345")
    config = next(path for path in (store.root / "blobs").iterdir() if b"model_format" in path.read_bytes())
    path = config if how == "config" else model.blob
    path.unlink()
    if how in ("short", "config"):
        path.write_bytes(b"x")
    if how == "link":
        path.symlink_to("/etc/passwd")
    assert store.models()[0].problem
    with pytest.raises(StoreDamaged):
        store.resolve("one")
    again = put(store, "one:Q8_0", b"12345")
    assert store.resolve("one") == again


def test_strange_files_are_passed_over(store: Store) -> None:
    model = put(store, "one:Q8_0")
    for path in ("manifests/x", "manifests/a/b/c/d/e", "manifests/a b/c/d/e", "manifests/a/b/c/f..g", "blobs/x", "y"):
        (store.root / path).parent.mkdir(parents=True, exist_ok=True)
        (store.root / path).write_bytes(b"")
    assert store.models() == [model]
    store.collect(())
    assert (store.root / "blobs/x").exists()


def test_one_owner(store: Store, tmp_path: Path) -> None:
    code = f"from pathlib import Path; from registry.store.store import Store; Store.open(Path({str(store.root)!r}))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "StoreLocked" in other.stderr
    assert f"process {os.getpid()}" in other.stderr
    with pytest.raises(StoreLocked):
        Store.open(store.root)
    store.close()
    store.close()
    Store.open(store.root).close()


def test_the_lock_dies_with_its_owner(tmp_path: Path) -> None:
    code = "Store.open(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    code = f"import sys, os; from pathlib import Path; from registry.store.store import Store; {code}"
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "store")])
    assert killed.returncode == -9
    Store.open(tmp_path / "store").close()


def test_recovery_clears_what_is_unfinished(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        model = put(store, "one:Q8_0")
        store.begin("half").data.write_bytes(b"1234")
    for path in ("manifests", "chosen", "manifests/registry.ollama.ai/library/one", "."):
        (tmp_path / path / f"{fsops.TEMPORARY}Q8_0").write_bytes(b"")
    (tmp_path / "blobs" / f"sha256-{'0' * 64}").write_bytes(b"")
    with Store.open(tmp_path) as store:
        assert store.models() == [model]
    assert not [name for name in files(tmp_path) if fsops.TEMPORARY in name or "0" * 64 in name or "ingest" in name]


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"format": "1"}', b'{"format": 2}', b"[" * 100_000])
def test_a_store_of_another_version_is_left_alone(tmp_path: Path, content: bytes) -> None:
    Store.open(tmp_path).close()
    (tmp_path / "store.json").write_bytes(content)
    with pytest.raises(StoreDamaged):
        Store.open(tmp_path)
    assert (tmp_path / "store.json").read_bytes() == content


def test_a_foreign_store_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "manifests").mkdir()
    (tmp_path / "blobs").mkdir()
    with pytest.raises(StoreDamaged):
        Store.open(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blobs", "manifests"]


def test_the_store_may_be_a_link_to_another_disk(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir(mode=0o755)
    (tmp_path / "store").symlink_to(tmp_path / "disk")
    with Store.open(tmp_path / "store") as store:
        model = put(store, "one:Q8_0")
        assert model.blob.is_relative_to(tmp_path / "disk")
    assert (tmp_path / "disk").stat().st_mode & 0o777 == 0o700


def test_no_store_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "store"):
        with pytest.raises(StoreFailed):
            Store.open(path)


def test_many_at_once_lose_nothing(store: Store) -> None:
    """Whoever lists models while others commit, delete and collect never sees a broken one."""
    rounds, errors = 40, []
    busy = threading.Event()

    def commit(number: int) -> None:
        for turn in range(rounds):
            model = put(store, f"org/m{number}:Q8_0", f"{turn % 3}".encode())
            if turn % 4 == number:
                store.delete(model)
            store.collect(())

    def look() -> None:
        while not busy.is_set():
            errors.extend(model.problem for model in store.models() if model.problem)
            with contextlib.suppress(ModelNotFound):
                store.resolve("org/m1")

    writers = [threading.Thread(target=commit, args=(number,)) for number in range(3)]
    reader = threading.Thread(target=look)
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    busy.set()
    reader.join()
    assert not errors
    assert [model.name for model in store.models()] == [f"hf.co/org/m{number}:Q8_0" for number in range(3)]


@pytest.mark.parametrize("cut", ["", "failed", "died"])
def test_a_paused_pull_goes_on_by_another_address_even_where_the_change_was_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    old, new = "https://x.example/a.gguf?s=1", "https://x.example/a.gguf?s=2"
    facts = PullFacts(old, "hub", "abc", "Q8_0", "why", "print", 9)

    def begun(store: Store, title: str) -> Checkpoint | None:
        ingest = store.begin(title)
        partial = Partial(ingest.folder)
        place = partial.begin(msgspec.structs.replace(facts, title=title))
        partial.write(b"half")
        partial.reached(Checkpoint(0, 0, "a.gguf", 0, b"", 0, b""))
        partial.finish()
        partial.close()
        store.pause(ingest)
        return place

    with Store.open(tmp_path) as store:
        assert begun(store, old) is None
        with monkeypatch.context() as patched:
            if cut:
                patched.setattr(fsops, "replace", lambda *_: 1 / 0)
            with contextlib.suppress(ZeroDivisionError):
                store.readdress(old, new)
        if cut == "died":
            store.close()
            store = Store.open(tmp_path)
            store.readdress(old, new)
        assert begun(store, new) is not None
        assert [ingest.title for ingest in store.partials()] == [new]
        assert begun(store, old) is None, "what has moved is nowhere else"
        store.readdress(old, new)
        assert sorted(ingest.title for ingest in store.partials()) == [old, new], "nothing is put over another pull"
        store.close()
