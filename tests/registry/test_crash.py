"""The store at every step of its work: killed, refused by the disk, and with every fsync shown to be needed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from registry.errors import DiskFull, RegistryError, StoreFailed
from registry.store import fsops
from registry.store.store import Store
from tests.registry.crashing import (
    BETTER,
    IMPROVED,
    MADE,
    NEW,
    OLD,
    PLAIN,
    content,
    improve,
    live,
    make,
    measure,
    prepare,
    put,
    put_signature,
    roll_back,
    upload,
)

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def no_hook() -> Iterator[None]:
    yield
    fsops.hook = None


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: none of this looks at the disk itself, and a thousand fsyncs take long."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def template(memory: Path) -> Path:
    prepare(memory / "template")
    return memory / "template"


@pytest.fixture
def place(memory: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("day", "deeds"),
    [
        (
            "crashing",
            {
                "added",
                "pulled",
                "deleted",
                "shared",
                "uploaded",
                "made",
                "copied",
                "measured",
                "signed",
                "improved",
                "returned",
            },
        ),
        ("carrying", {"imported", "fetched", "noted", "recorded"}),
        ("making", {"readdressed", "pinned", "packed", "made", "saved", "login"}),
    ],
    ids=["a day of models", "carrying", "making"],
)
def test_killed_at_every_step(place: Path, day: str, deeds: set[str]) -> None:
    command = [sys.executable, "-m", f"tests.registry.{day}", str(place)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    deaths = json.loads(done.stdout)
    by_deed = ", ".join(f"{deed} {count}" for deed, count in deaths.items())
    print(f"\n{sum(deaths.values())} deaths, 0 lost, 0 falsely listed; before each deed was done: {by_deed}")
    assert deeds <= deaths.keys() and sum(deaths.values()) > 150


class Refuse:
    """The disk refuses one step, or all from there on, with an error."""

    def __init__(self, code: int, first: int, last: int) -> None:
        self.code, self.first, self.last, self.count, self.hit = code, first, last, 0, ""

    def __call__(self, when: str, operation: str, path: Path) -> None:
        self.count += when == "before"
        if when == "before" and self.first <= self.count <= self.last:
            self.hit = f"{operation} {path.name}"
            raise OSError(self.code, os.strerror(self.code))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("lasting", [False, True])
def test_refused_at_every_step(template: Path, place: Path, code: int, lasting: bool) -> None:
    wanted = DiskFull if code in (errno.ENOSPC, errno.EDQUOT) else StoreFailed
    step = refusals = 0
    while True:
        step += 1
        root = place / str(step)
        shutil.copytree(template, root)
        with Store.open(root) as store:
            fsops.hook = refuse = Refuse(code, step, 1 << 30 if lasting else step)
            try:
                put(store, "org/replaced:Q8_0", NEW)
                upload(store)
                make(store)
                store.copy(store.resolve("made"), replace(MADE, model="copied"))
                measure(store)
                put_signature(store, "copied")
                improve(store, IMPROVED)
                roll_back(store, IMPROVED)
                store.delete(store.resolve("org/kept"))
                store.collect(())
            except RegistryError as error:
                assert type(error) is wanted, refuse.hit
                refusals += 1
            fsops.hook = None
            # The same store goes on, with what it had or what it got, and the work can be done again.
            assert content(store, "org/replaced:Q8_0") in (OLD, NEW), refuse.hit
            assert not any(model.problem for model in store.models()), refuse.hit
            assert content(store, IMPROVED) in (PLAIN, BETTER), refuse.hit
            improve(store, IMPROVED)
            roll_back(store, IMPROVED)
            assert content(store, IMPROVED) == PLAIN, refuse.hit
            put(store, "org/replaced:Q8_0", NEW)
            if content(store, "org/kept") is not None:
                assert store.resolve("org/kept").card.get("mean", {}).get("value") in (None, 0.5), refuse.hit
                measure(store)
                upload(store)
                make(store)
            store.collect(())
            assert content(store, "org/replaced") == NEW, refuse.hit
            assert content(store, "made") == OLD, refuse.hit
        with Store.open(root) as store:
            assert not list((root / "ingest").iterdir())
            assert content(store, "org/replaced:Q8_0") == NEW
        if not refuse.hit:
            break
    assert refusals > 25


PLACES = {"blobs", "manifests", "older", "chosen", "shared", "ingest", "."}
# Nobody goes on with what these deeds leave in a folder of `ingest`, so it need not be found there.
MAKING, UNRESUMED = {"uploaded", "made", "copied", "signed", "measured"}, {"ingest"}


class Durability:
    """Watches that nothing is published before it is on the disk, as if the power could go at any moment.

    Knows which inodes were synced, at which length, and which folders have entries that were not.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.synced: set[tuple[int, int]] = set()
        self.loose: set[Path] = set()
        self.wrong: list[str] = []

    def __call__(self, when: str, operation: str, path: Path) -> None:
        if when == "before":
            if operation == "rename" and "manifests" in path.parts:
                self.settled(f"{path.name} is published", {"blobs", "manifests", "shared", "older"})
            if operation == "unlink" and "manifests" in path.parts and path.exists():
                self.loose.add(path.parent)
        elif operation == "fsync":
            self.synced.add(state(path))
        elif operation == "fsync_dir":
            self.loose.discard(path)
        elif operation in ("mkdir", "rename"):
            self.loose.add(path.parent)
            if operation == "rename" and state(path) not in self.synced:
                self.wrong.append(f"{path.name} is renamed before it is synced")
            if path.name == "journal" and state(path.with_name("data")) not in self.synced:
                self.wrong.append("the journal vouches for data that is not synced")

    def settled(self, when: str, places: set[str]) -> None:
        """Note the folders below `places` with entries that a power cut could undo."""
        loose = {str(folder.relative_to(self.root)) for folder in self.loose}
        unsettled = sorted(folder for folder in loose if folder.partition("/")[0] in places)
        self.wrong += [f"{folder} is not synced when {when}" for folder in unsettled]
        self.loose = {folder for folder in self.loose if str(folder.relative_to(self.root)) not in unsettled}


def state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_size


def watched(root: Path, skip: int) -> tuple[list[str], bool]:
    """What is wrong with a day during which the fsync number `skip` is left out, and whether there were so many."""
    seen, watch, real = 0, Durability(root), fsops._fsync

    def fsync(path: Path, flags: int) -> None:
        nonlocal seen
        seen += 1
        if seen == skip:
            raise InterruptedError  # as if the line were not there: neither done nor seen as done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fsops, "_fsync", fsync)
        for name in ("fsync", "fsync_dir"):
            patch.setattr(fsops, name, forgiving(getattr(fsops, name)))
        fsops.hook = watch
        live(root, lambda deed: watch.settled(f"{deed} is reported", PLACES - (UNRESUMED if deed in MAKING else set())))
        fsops.hook = None
    assert fsops._fsync is real
    return watch.wrong, seen >= skip


def forgiving(function):  # type: ignore[no-untyped-def]
    def call(path: Path) -> None:
        with contextlib.suppress(InterruptedError):
            function(path)

    return call


def test_every_fsync_is_needed_and_there(template: Path, place: Path) -> None:
    skip, left = 0, True
    while left:
        root = place / str(skip)
        shutil.copytree(template, root)
        wrong, left = watched(root, skip)
        assert bool(wrong) == (left and skip > 0), f"fsync {skip}: {wrong}"
        skip += 1
    assert skip > 15
