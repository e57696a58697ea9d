"""A day in a store's life, ended by SIGKILL at one step after another; run as a program of its own, for it forks.

    python -m tests.registry.crashing FOLDER

Steps are those of `registry.store.fsops`. After each death the store is opened as the next daemon would, and must hold:
I1 every blob hashes to its name; I2 every model listed is complete; I3 what was reported as done is there; I4 a name
that is being replaced means the old or the new model at any time; I5 the work can be done again to its end; I6 nothing
unfinished is left but a pull that is journalled, and that is never lost. Prints the deaths before each deed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

from registry.errors import ModelNotFound, RegistryError
from registry.names import LIBRARY, LOCAL, Name, parse
from registry.signatures.attaching import attach, signatures_of
from registry.signatures.files import signed_files
from registry.signatures.statement import bundled, statement
from registry.store import fsops, manifest, older, sharing
from registry.store.arriving import ArrivingFile
from registry.store.catalog import Model
from registry.store.layers import Staged
from registry.store.partial import Checkpoint, Partial, PullFacts
from registry.store.store import Store
from tests import storing

OLD, NEW, OTHER = b"old weights", b"new weights", b"of another"
LINKED, SHARED = "org/shared:Q8_0", b"what is shared with its owner"
PLACED, IN_PLACE = "org/placed:Q8_0", b"what is read where its owner has it"
SENT, BRIEF, MADE = b"a file that is sent", "Be brief.", Name(LOCAL, LIBRARY, "made", "latest")
IMPROVED, RETURNED, PLAIN, BETTER = (
    "org/improved:Q8_0",
    "org/returned:Q8_0",
    b"weights that are rounded each alone",
    b"weights of less error",
)
PULLED, FIRST, HALF = "org/pulled:Q8_0", b"half of what", b"half of what is pulled"


def put(store: Store, name: str, data: bytes) -> Model:
    return storing.put(store, name, data, {"model_format": "gguf", "bytes": len(data)}, {"x": data.hex()})


def pull(store: Store, data: bytes, commit: bool, title: str = PULLED) -> None:
    """Go on with a pull up to the end of `data`, and journal or commit it."""
    ingest = store.begin(title)
    partial = Partial(ingest.folder)
    place = partial.begin(PullFacts(title, "hub", "abc", "Q8_0", "why", "print", len(HALF)))
    partial.write(data[place.size if place else 0 :])
    if not commit:
        partial.reached(Checkpoint(0, 0, "model.safetensors", 0, b"", 0, b""))
    weights = Staged.file(ingest.data, manifest.MODEL, *partial.finish())
    partial.close()
    if commit:
        store.commit(ingest, [weights], named(title), {"model_format": "gguf"})
    else:
        store.pause(ingest)


def named(title: str) -> Name:
    """The name that a pull of this title gives to its model."""
    name = parse(title).name
    return name if name.tag else name.tagged("Q8_0")


def share(store: Store, name: str, path: Path, *, link: bool = True) -> None:
    """Take over another program's file by a hard link, or read it in place."""
    ingest = store.begin(name)
    partial = Partial(ingest.folder)
    partial.begin(PullFacts(name, "folder", "", "Q8_0", "why", "print", path.stat().st_size))
    with path.open("rb") as file, mock.patch.object(sharing, "reflink", return_value=False):
        place = None if link else path
        assert partial.adopt(file.fileno(), link=link, place=place) == ("link" if link else "place")
        state = sharing.state_of(os.fstat(file.fileno()))
        partial.write(file.read())
    weights = Staged.file(ingest.data, manifest.MODEL, *partial.finish(), shared=state)
    partial.close()
    store.commit(ingest, [weights], parse(name).name, {"model_format": "gguf"})


def upload(store: Store) -> None:
    """Receive a file of which a model may be made."""
    digest = f"sha256:{hashlib.sha256(SENT).hexdigest()}"
    coming = ArrivingFile(store, digest, len(SENT))
    coming.write(SENT)
    coming.finish()


def make(store: Store) -> None:
    """Make a model of another one, with instructions of its own, as `/api/create` does it."""
    layers = store.contents(store.resolve("org/kept:Q8_0")).layers
    system, config = Staged.text(BRIEF, manifest.SYSTEM), Staged.json({"model_format": "gguf"}, manifest.CONFIG)
    data = manifest.build(config.layer, [*layers, system.layer])
    ingest = store.begin("create made", new=True)
    try:
        store.adopt(ingest, data, [system, config], MADE)
    finally:
        store.abandon(ingest)


def measure(store: Store) -> None:
    """Keep a quality card with a model, as `lm quality` does it."""
    model = store.resolve("org/kept:Q8_0")
    store.attach(model, Staged.json(storing.card(model, mean=0.5), manifest.QUALITY))


def improve(store: Store, name: str, commit: bool = True) -> None:
    """Put better weights in the place of a model's, whose manifest is kept, as the improver does it; or begin them."""
    model, title = store.resolve(name), f"improve {name}"
    if model.improved:
        return
    ingest = store.begin(title, beside=True)
    try:
        partial = Partial(ingest.folder)
        place = partial.begin(PullFacts(name, "hub", "abc", "Q8_0", "why", "print", len(BETTER)))
        if not commit and place is None:
            partial.write(BETTER[:6])
            partial.reached(Checkpoint(0, 0, "model.safetensors", 0, b"", 0, b""))
        elif commit:
            partial.write(BETTER[place.size if place else 0 :])
        weights = Staged.file(ingest.data, manifest.MODEL, *partial.finish())
        partial.close()
        if not commit:
            return
        own = {"lm": {"improved": {"older": model.digest}}}
        layers = [weights, Staged.json(dict(model.config) | own, manifest.CONFIG)]
        data = manifest.with_layers(store.manifest(model)[0], [each.layer for each in layers])
        store.adopt(ingest, data, layers, model.key, f"sha256:{model.digest}", keep_older=True)
    finally:
        store.pause(ingest)
    store.abandon(ingest)


def roll_back(store: Store, name: str) -> None:
    """Go back to the older weights of a model, if it has any."""
    if store.resolve(name).improved:
        store.roll_back(store.resolve(name))
        store.collect(())


def put_signature(store: Store, name: str) -> None:
    """Put a signature on a model, as `/lm/sign` does it; whether a key made it is another question."""
    model = store.resolve(name)
    payload = statement(name, signed_files(store.contents(model).layers))
    attach(store, model, bundled(payload, b"signed", "0" * 64))


def signatures(store: Store, name: str) -> int:
    """The number of signatures on a model that hold for its files; 0 where it is not there."""
    try:
        found = signatures_of(store, store.resolve(name))
    except ModelNotFound:
        return 0
    assert not [each.fault for each in found if each.fault]
    return len(found)


def prepare(root: Path) -> None:
    with Store.open(root) as store:
        put(store, "org/kept:Q8_0", OLD)
        put(store, "org/replaced:Q8_0", OLD)
        put(store, "org/deleted:Q8_0", OTHER)
        put(store, IMPROVED, PLAIN)
        put(store, RETURNED, PLAIN + PLAIN)


def live(root: Path, report: Callable[[str], None]) -> None:
    """The day; `report` hears of each deed when it is done."""
    with Store.open(root) as store:
        report("open")
        put(store, "org/replaced:Q8_0", NEW)
        report("replaced")
        put(store, "org/replaced:BF16", NEW + NEW)
        report("added")
        pull(store, FIRST, commit=False)
        report("journalled")
        pull(store, HALF, commit=True)
        report("pulled")
        store.delete(store.resolve("org/deleted:Q8_0"))
        report("deleted")
        store.collect(())
        report("collected")
        share(store, LINKED, theirs(root))
        report("shared")
        share(store, PLACED, theirs(root, "placed", IN_PLACE), link=False)
        report("placed")
        upload(store)
        report("uploaded")
        make(store)
        report("made")
        store.copy(store.resolve("made"), replace(MADE, model="copied"))
        report("copied")
        measure(store)
        report("measured")
        put_signature(store, "copied")
        report("signed")
        improve(store, IMPROVED, commit=False)
        report("begun")
        improve(store, IMPROVED)
        report("improved")
        improve(store, RETURNED, commit=False)
        report("second")
        improve(store, RETURNED)
        report("bettered")
        roll_back(store, RETURNED)
        report("returned")


def theirs(root: Path, kind: str = "theirs", data: bytes = SHARED) -> Path:
    """The file of another program, beside the store."""
    path = root.with_name(f"{root.name}.{kind}")
    if not path.exists():
        path.write_bytes(data)
        path.chmod(0o640)
    return path


def content(store: Store, name: str) -> bytes | None:
    try:
        return store.resolve(name).blob.read_bytes()
    except ModelNotFound:
        return None


def check_blobs(root: Path, store: Store) -> None:
    """Each blob hashes to its name, and each model that is listed is complete."""
    for blob in (root / "blobs").iterdir():
        assert blob.name == f"sha256-{hashlib.sha256(blob.read_bytes()).hexdigest()}"
    assert not [model.problem for model in store.models() if model.problem]


def check_improved(root: Path, store: Store, done: set[str]) -> None:
    """An improved model is the old or the better one, and can go back while it is the better one."""
    assert content(store, IMPROVED) in ([BETTER] if "improved" in done else [PLAIN, BETTER])
    returned = [PLAIN + PLAIN] if "returned" in done or "improved" not in done else [PLAIN + PLAIN, BETTER]
    assert content(store, RETURNED) in ([BETTER, PLAIN + PLAIN] if "bettered" in done else returned)
    kept = {parse(name).name for name in (IMPROVED, RETURNED) if store.resolve(name).improved}
    assert {each.model.key for each in older.all_of(store)} == kept
    assert len(list((root / "older").rglob("Q8_0"))) == len(kept)
    blobs = {blob.read_bytes() for blob in (root / "blobs").iterdir()}
    assert {PLAIN, PLAIN + PLAIN} <= blobs and (BETTER in blobs) == bool(kept)
    for name, before in ((IMPROVED, PLAIN), (RETURNED, PLAIN + PLAIN)):
        roll_back(store, name)
        assert content(store, name) == before


def check(root: Path, done: set[str]) -> None:
    """The invariants, I1 to I6."""
    with Store.open(root) as store:
        check_blobs(root, store)
        assert content(store, "org/kept") == OLD
        mean = store.resolve("org/kept").card.get("mean", {}).get("value")
        assert mean in ([0.5] if "measured" in done else [None, 0.5])
        kinds = [layer.media_type for layer in store.contents(store.resolve("org/kept")).layers]
        assert kinds.count(manifest.QUALITY) == (mean is not None)  # the old layers, or a card that is whole
        assert content(store, "org/replaced:Q8_0") in ([NEW] if "replaced" in done else [OLD, NEW])
        assert content(store, "org/replaced:BF16") in ([NEW + NEW] if "added" in done else [None, NEW + NEW])
        assert content(store, "org/replaced") in ([NEW + NEW] if "added" in done else [OLD, NEW, NEW + NEW])
        assert content(store, "org/deleted") in ([None] if "deleted" in done else [None, OTHER])
        check_improved(root, store, done)
        listed = {model.blob for model in store.models()}
        sizes = (*map(len, (OLD, OTHER, NEW + NEW, HALF, SHARED, IN_PLACE, PLAIN, PLAIN + PLAIN)),)
        assert {path for path in (root / "blobs").iterdir() if path.stat().st_size in sizes} == listed
        assert content(store, LINKED) in ([SHARED] if "shared" in done else [None, SHARED])
        assert content(store, PLACED) in ([IN_PLACE] if "placed" in done else [None, IN_PLACE])
        for path, data in ((theirs(root), SHARED), (theirs(root, "placed", IN_PLACE), IN_PLACE)):
            assert path.read_bytes() == data and path.stat().st_mode & 0o777 == 0o640
        for name in ("made", "copied"):
            assert content(store, name) in ([OLD] if name in done else [None, OLD])
            assert content(store, name) is None or store.resolve(name).system == BRIEF
        assert signatures(store, "copied") in ([1] if "signed" in done else [0, 1])
        assert not (root / "blobs" / f"sha256-{hashlib.sha256(SENT).hexdigest()}").exists()
        assert content(store, PULLED) in ([HALF] if "pulled" in done else [None, HALF])
        lengths = [ingest.journal.latest.size for ingest in store.partials() if ingest.journal]
        assert len(lengths) + len(store.partials(beside=True)) == len(list((root / "ingest").iterdir()))
        if content(store, PULLED) is None:
            assert lengths in ([[len(FIRST)]] if "journalled" in done else [[], [len(FIRST)]])
        assert not [path for path in root.rglob("*") if path.name.startswith(fsops.TEMPORARY)]
        if content(store, "org/deleted") is None:
            put(store, "org/deleted:Q8_0", OTHER)
    live(root, lambda deed: None)
    with Store.open(root) as store:
        assert [model.name for model in store.models()] == [
            "hf.co/org/improved:Q8_0", "hf.co/org/kept:Q8_0", "hf.co/org/placed:Q8_0", "hf.co/org/pulled:Q8_0",
            "hf.co/org/replaced:BF16", "hf.co/org/replaced:Q8_0", "hf.co/org/returned:Q8_0", "hf.co/org/shared:Q8_0",
            "copied:latest", "made:latest",
        ]  # fmt: skip
        assert not store.partials()


class Die:
    """Kills the process at one step, before or after it, or with a file half written."""

    def __init__(self, at: int, when: str) -> None:
        self.at, self.when, self.count = at, when, 0

    def __call__(self, when: str, operation: str, path: Path) -> None:
        self.count += when == "before"
        if self.count == self.at and when == ("after" if self.when == "after" else "before"):
            if self.when == "torn" and operation == "write":
                path.write_bytes(b'{"sch')
            os.kill(os.getpid(), signal.SIGKILL)


Day = Callable[[Path, Callable[[str], None]], None]


def die_at(root: Path, at: int, when: str, day: Day) -> tuple[list[str], bool]:
    """Live until the step; the deeds that were done by then, and whether the day ended by a death."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        report = os.fdopen(writer, "w")
        try:
            fsops.hook = Die(at, when)
            day(root, lambda deed: print(deed, file=report, flush=True))
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        done = pipe.read().split()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return done, status != 0


def count_deaths(
    folder: Path, begin: Callable[[Path], None], day: Day, judge: Callable[[Path, set[str]], None]
) -> dict[str, int]:
    """Die at every step of a day, in every way, and judge what is left; the deaths before each deed was done."""
    begin(folder / "template")
    deaths, deeds = Counter[int](), list[str]()
    for when in ("before", "after", "torn"):
        at = 0
        while True:
            at += 1
            root = folder / f"{when}{at}"
            shutil.copytree(folder / "template", root)
            done, died = die_at(root, at, when, day)
            if not died:
                deeds = [*done, "ended"]
                break
            deaths[len(done)] += 1
            try:
                judge(root, set(done))
            except (AssertionError, RegistryError) as error:
                raise AssertionError(f"after a death {when} step {at}, with {sorted(done)} done") from error
            shutil.rmtree(root)
    return {deeds[count]: deaths[count] for count in sorted(deaths)}


if __name__ == "__main__":
    print(json.dumps(count_deaths(Path(sys.argv[1]), prepare, live, check)))
