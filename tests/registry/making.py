"""A day of making models of files, ended by SIGKILL at each step in turn; run as a program of its own, for it forks.

    python -m tests.registry.making FOLDER

A paused pull gets a new address and owners and is done, a name is pinned, a registry's tar is unpacked and its model
comes with a draft, a model is made of uploaded files, a chat is saved, a bundle's foreign model is laid out, a login is
kept. After each death the store is opened as the next daemon would: each blob hashes to its name, each model listed is
complete, what was reported as done is there, and the day can be lived again to its end.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

from registry.bundles.foreign import laid_out
from registry.names import LIBRARY, LOCAL, Name, parse
from registry.sources.local import Folder
from registry.sources.unpacking import Unpacking
from registry.store import fsops, manifest
from registry.store.arriving import ArrivingFile
from registry.store.layers import Staged
from registry.store.partial import Partial, PullFacts
from registry.store.store import Store
from server.config import Config
from server.creates.making import Making
from server.logins import read_logins, save_login
from server.policy.rules import PolicyRules
from tests import storing
from tests.registry.crashing import check_blobs, content, count_deaths, named, pull

SIGNED, RENEWED = "https://files.lan/x.gguf?signature=1", "https://files.lan/x.gguf?signature=2"
PULLED = named(RENEWED).display
KEPT, FIRST, HALF = b"kept weights", b"half of", b"half of what is pulled"
TAR, PACKED = b"a tar with weights" * 99, "registry.lan/team/packed:v1"
DRAFT, PARTS = b"a smaller model", {"model.safetensors": b"tensors", "config.json": b"{}"}
MADE, SAVED = (Name(LOCAL, LIBRARY, model, "latest") for model in ("made", "saved"))
TURNS, HOST, LOGIN = ({"role": "user", "content": "Hello"},), "registry.lan", "me:secret"


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def begin(root: Path) -> None:
    """The store on the evening before, and beside it the tar that a registry has."""
    with Store.open(root) as store:
        storing.put(store, "org/kept:BF16", KEPT + KEPT)
        storing.put(store, "org/kept:Q8_0", KEPT)
    root.with_name("far").mkdir()
    (root.with_name("far") / "tar.gz").write_bytes(gzip.compress(TAR, mtime=0))


def live(root: Path, report: Callable[[str], None]) -> None:
    """The day; `report` hears of each deed when it is done."""
    with Store.open(root) as store:
        readdress(store, report)
        store.pin(store.resolve("org/kept:BF16"))
        report("pinned")
        store.unpin(parse("org/kept").name)
        report("unpinned")
        fetch_packed(store)
        report("packed")
        make_of_uploads(store)
        report("made")
        save_chat(store)
        report("saved")
        lay_out(store)
        save_login(config(root), HOST, LOGIN)
        report("login")
        store.collect(())


def readdress(store: Store, report: Callable[[str], None]) -> None:
    """Pause a pull, give it a new address, and go on."""
    if content(store, PULLED) is not None:
        store.delete(store.resolve(PULLED))
    if RENEWED not in [ingest.title for ingest in store.partials()]:
        pull(store, FIRST, commit=False, title=SIGNED)
    report("paused")
    store.detach(SIGNED, b"{}")
    store.note_owners(SIGNED, {"mine"})
    store.readdress(SIGNED, RENEWED)
    report("readdressed")
    pull(store, HALF, commit=True, title=RENEWED)
    report("pulled")


def fetch_packed(store: Store) -> None:
    """A pull of weights in a packed tar, with a draft model beside them."""
    ingest = store.begin(PACKED)
    made = Partial(ingest.folder)
    made.begin(PullFacts(PACKED, "registry", "abc", "", "why", "print", len(TAR)))
    source = Folder(store.root.with_name("far"), "tar")
    place = Unpacking(ingest.folder / "unpacked", 1 << 30, lambda *_: None)
    tar = place.unpack("tar.gz", digest(TAR), source.size("tar.gz"), lambda: source.open("tar.gz"), "tar")
    made.write(tar.read_bytes())
    (ingest.folder / "draft").write_bytes(DRAFT)
    layers = [
        Staged.file(ingest.data, manifest.MODEL, *made.finish()),
        Staged.file(ingest.folder / "draft", manifest.DRAFT, hashlib.sha256(DRAFT).hexdigest(), len(DRAFT)),
    ]
    made.close()
    store.commit(ingest, layers, parse(PACKED).name, {"model_format": "gguf"})


def make_of_uploads(store: Store) -> None:
    """Send the files of a model, and make one of them, as `/api/create` does it."""
    for data in PARTS.values():
        coming = ArrivingFile(store, digest(data), len(data))
        coming.write(data)
        coming.finish()
    ingest = store.begin("create made", new=True)
    try:
        making = Making(config(store.root), store, "create made", check=False, rules=PolicyRules())
        folder = Path(making._named(ingest, {name: digest(data) for name, data in PARTS.items()}))
        ingest.data.write_bytes(b"".join((folder / name).read_bytes() for name in PARTS))
        weights = Staged.file(ingest.data, manifest.MODEL, *_described(ingest.data))
        config_layer = Staged.json({"model_format": "gguf"}, manifest.CONFIG)
        data = manifest.build(config_layer.layer, [weights.layer])
        store.adopt(ingest, data, [weights, config_layer], MADE)
    finally:
        store.abandon(ingest)
    store.leases.release([digest(data) for data in PARTS.values()])


def save_chat(store: Store) -> None:
    """Keep a chat as a model, as `/save` does it."""
    layers = store.contents(store.resolve("org/kept:Q8_0")).layers
    turns, config_layer = Staged.messages(TURNS, manifest.MESSAGES), Staged.json({"of": "a chat"}, manifest.CONFIG)
    ingest = store.begin("create saved", new=True)
    try:
        data = manifest.build(config_layer.layer, [*layers, turns.layer])
        store.adopt(ingest, data, [turns, config_layer], SAVED)
    finally:
        store.abandon(ingest)


def lay_out(store: Store) -> None:
    """Lay the layers of a foreign model out for the pass, which then refuses it."""
    ingest = store.begin("import foreign", new=True)
    blob = store.resolve("org/kept:Q8_0").blob
    place = laid_out(ingest.folder / "source", MADE, b"{}", {f"sha256:{blob.name[7:]}": blob})
    assert place.read_bytes() == b"{}"
    store.abandon(ingest)


def config(root: Path) -> Config:
    """The settings of the daemon whose store this is; its folder is the home, for copies of it are made."""
    return Config(home=root, docker_config=root / "nowhere")


def _described(path: Path) -> tuple[str, int]:
    data = path.read_bytes()
    return hashlib.sha256(data).hexdigest(), len(data)


def check(root: Path, done: set[str]) -> None:
    """The invariants."""
    with Store.open(root) as store:
        check_blobs(root, store)
        pulled = content(store, PULLED)
        assert pulled in ([HALF] if "pulled" in done else [None, HALF])
        paused = {ingest.title: ingest for ingest in store.partials()}
        if pulled is None and "paused" in done:
            # Once: under its old address, or its new one; never lost, never twice.
            assert len(ours := [each for each in paused if each in (SIGNED, RENEWED)]) == 1
            assert "readdressed" not in done or ours == [RENEWED]
            assert "readdressed" not in done or paused[RENEWED].owners == {"mine"}
        pinned = store.pin_path(parse("org/kept").name).exists()
        assert ("unpinned" in done) <= (not pinned)
        assert store.resolve("org/kept").name == ("hf.co/org/kept:BF16" if pinned else "hf.co/org/kept:Q8_0")
        assert content(store, PACKED) in ([TAR] if "packed" in done else [None, TAR])
        if content(store, PACKED) is not None:
            draft = store.resolve(PACKED).draft
            assert draft is not None and draft.path.read_bytes() == DRAFT
        made = b"".join(PARTS.values())
        assert content(store, "made") in ([made] if "made" in done else [None, made])
        assert content(store, "saved") in ([KEPT] if "saved" in done else [None, KEPT])
        assert content(store, "saved") is None or store.resolve("saved").messages == TURNS
        assert ("login" not in done) or dict(read_logins(config(root))) == {HOST: LOGIN}
        assert content(store, "org/kept:Q8_0") == KEPT and content(store, "org/kept:BF16") == KEPT + KEPT
        assert not [path for path in root.rglob("*") if path.name.startswith(fsops.TEMPORARY)]
        assert len(list((root / "ingest").iterdir())) == len(paused)
        assert not [each for each in (root / "blobs").iterdir() if each.read_bytes() in PARTS.values()]
    live(root, lambda deed: None)
    with Store.open(root) as store:
        assert {model.name for model in store.models()} >= {PACKED, "made:latest", "saved:latest"}
        assert content(store, PULLED) == HALF
        assert not list((root / "ingest").iterdir())


if __name__ == "__main__":
    print(json.dumps(count_deaths(Path(sys.argv[1]), begin, live, check)))
