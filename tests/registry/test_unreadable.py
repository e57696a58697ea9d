"""What cannot be read is never taken for absent: nothing is removed, the reason is told, and the rest goes on."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from registry.errors import ModelNotFound, StoreDamaged, StoreFailed
from registry.names import parse
from registry.store import partial
from registry.store.ingest import Ingest
from registry.store.partial import Checkpoint, Partial, PullFacts
from registry.store.store import Store
from tests.registry.crashing import put

ROOT = Path(__file__).parent.parent.parent
NOBODY = 65534
FACTS = PullFacts("org/pulled:Q8_0", "hub", "abc", "Q8_0", "why", "print", 9)
# Opens the store at argv[1] as another user, as the next daemon would, and says what it sees.
LOOK = """
import json, logging, os, sys
from pathlib import Path
from registry.errors import StoreFailed
from registry.store.store import Store

if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
logging.basicConfig(level="WARNING", stream=sys.stderr)
with Store.open(Path(sys.argv[1])) as store:
    freed = store.collect(())
    try:
        store.models()
        said = ["", ""]
    except StoreFailed as error:
        said = [str(error), error.hint]
print(json.dumps([freed, *said]))
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Two variants of a model of the hub, and one model made here."""
    with Store.open(tmp_path / "store") as opened:
        for name in ("org/repo:Q4_K_M", "org/repo:Q8_0", "/models/tale:Q8_0"):
            put(opened, name, name.encode())
        yield opened


def blobs(root: Path) -> set[str]:
    return {path.name for path in (root / "blobs").iterdir()}


def in_a_circle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    aside = folder.with_name(".aside")
    folder.rename(aside)
    folder.symlink_to(folder.name)

    def mend() -> None:
        folder.unlink()
        aside.rename(folder)

    return mend


def not_mounted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    mend = in_a_circle(folder, monkeypatch)
    folder.unlink()
    folder.symlink_to("/nowhere/at/all")
    return mend


def bad_sector(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The disk gives an I/O error for one folder."""
    listdir = os.listdir

    def refuse(path: Path) -> list[str]:
        if Path(path) == folder:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refuse)
    return monkeypatch.undo


@pytest.mark.parametrize("place", ["hf.co", "hf.co/org", "hf.co/org/repo"])
@pytest.mark.parametrize("trouble", [in_a_circle, not_mounted, bad_sector])
def test_a_folder_that_cannot_be_read_keeps_its_models(
    store: Store,
    trouble: Callable[[Path, pytest.MonkeyPatch], Callable[[], None]],
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    models, before = store.models(), blobs(store.root)
    folder = store.root / "manifests" / place
    mend = trouble(folder, monkeypatch)
    with caplog.at_level(logging.WARNING, "lm.store"):
        assert store.collect(()) == 0
    assert str(folder) in caplog.text
    assert blobs(store.root) == before
    with pytest.raises(StoreFailed) as caught:
        store.models()
    assert str(folder) in str(caught.value)
    assert caught.value.hint
    for look in (lambda: store.resolve("org/repo"), lambda: store.variants(parse("org/repo").name)[-1]):
        with contextlib.suppress(StoreFailed):  # unless only a folder above cannot be listed
            assert look() == models[1]
    # What lies elsewhere is used, brought in and missed as ever.
    assert store.resolve("tale").name == "tale:Q8_0"
    store.delete(put(store, "/models/other:Q8_0", b"other"))
    with pytest.raises(ModelNotFound):
        store.resolve("nothing")
    mend()
    store.collect(())
    assert (store.models(), blobs(store.root)) == (models, before)


@pytest.mark.parametrize("trouble", [in_a_circle, not_mounted, bad_sector])
def test_the_next_daemon_starts_and_removes_nothing(
    store: Store, trouble: Callable[[Path, pytest.MonkeyPatch], Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    models, before = store.models(), blobs(store.root)
    store.close()
    mend = trouble(store.root / "manifests/hf.co", monkeypatch)
    with Store.open(store.root) as again:
        assert blobs(store.root) == before
        mend()
        assert again.models() == models


def test_a_folder_of_another_user_keeps_its_models() -> None:
    """As in the field: somebody ran a command as root, and the daemon's user may not read what it left."""
    root_may = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as place:
        store, home = Path(place) / "store", Path(place)
        with Store.open(store) as opened:
            put(opened, "org/repo:Q8_0", b"weights")
        before = blobs(store)
        folder = store / "manifests/hf.co"
        if root_may:
            for path in (home, *home.rglob("*")):
                os.chown(path, NOBODY, NOBODY)
            os.chown(folder, 0, 0)
        folder.chmod(0o700 if root_may else 0)
        try:
            done = subprocess.run(
                [sys.executable, "-c", LOOK, str(store)], cwd=ROOT, capture_output=True, text=True, check=False
            )
        finally:
            folder.chmod(0o700)
        assert done.returncode == 0, done.stderr
        freed, said, hint = json.loads(done.stdout)
        assert (freed, blobs(store)) == (0, before)
        assert str(folder) in said
        assert "right to read" in hint
        assert str(folder) in done.stderr


def refuse_to_open(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk gives an I/O error for every file of this name."""
    opened = os.open

    def refuse(path: Path, *more: int) -> int:
        if Path(path).name == name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return opened(path, *more)

    monkeypatch.setattr(os, "open", refuse)


def test_a_manifest_that_cannot_be_read_is_not_called_damaged(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = blobs(store.root)
    (store.root / "manifests/hf.co/org/repo/Q4_K_M").touch()
    refuse_to_open("Q4_K_M", monkeypatch)
    (unread,) = [model for model in store.models() if model.problem]
    assert (unread.name, store.collect(()), blobs(store.root)) == ("hf.co/org/repo:Q4_K_M", 0, before)
    with pytest.raises(StoreFailed) as caught:
        store.resolve("org/repo:Q4_K_M")
    assert "disk" in caught.value.hint
    assert "lm rm" not in caught.value.hint
    assert store.resolve("org/repo:Q8_0").name == "hf.co/org/repo:Q8_0"


def test_a_model_of_a_folder_that_cannot_be_read_is_not_made_anew(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its manifest would say of which folder it was made; nobody knows, so nobody says that it is not here."""
    (store.root / "manifests/local/library/tale/Q8_0").touch()
    refuse_to_open("Q8_0", monkeypatch)
    with pytest.raises(StoreFailed):
        store.resolve("/models/tale")


def test_one_folder_that_cannot_be_read_hides_no_other_model(store: Store) -> None:
    names = {model.name for model in store.models()}
    folder = store.root / "manifests/hf.co/closed"
    folder.symlink_to("nowhere")
    unreadable: list[StoreFailed] = []
    assert {model.name for model in store.models(unreadable)} == names
    assert [str(failure) for failure in unreadable] == [f"`{folder}` is a link that leads to no folder"]
    with pytest.raises(StoreFailed):
        store.models()


def test_a_choice_that_cannot_be_read_is_not_another_choice(store: Store) -> None:
    choice = store.root / "chosen/hf.co/org/repo"
    assert store.resolve("org/repo").name == "hf.co/org/repo:Q8_0"
    choice.parent.rename(choice.parent.with_name("aside"))
    choice.parent.symlink_to(choice.parent.name)
    with pytest.raises(StoreFailed):
        store.resolve("org/repo")
    assert store.resolve("org/repo:Q4_K_M").name == "hf.co/org/repo:Q4_K_M"


def journalled(store: Store) -> Ingest:
    """A pull that was paused after some bytes."""
    ingest = store.begin(FACTS.title)
    output = Partial(ingest.folder)
    output.begin(FACTS)
    output.write(b"so far")
    output.reached(Checkpoint(0, 0, "model.safetensors", 0, b"", 0, b""))
    output.finish()
    output.close()
    store.pause(ingest)
    return ingest


def test_a_journal_that_cannot_be_read_keeps_what_was_pulled(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest = journalled(store)
    refuse_to_open(partial.JOURNAL, monkeypatch)
    for look in (store.partials, lambda: store.begin(FACTS.title), lambda: Partial(ingest.folder)):
        with pytest.raises(StoreFailed, match=partial.JOURNAL):
            look()
    store.close()
    with Store.open(store.root) as again:
        assert ingest.data.read_bytes() == b"so far"
        monkeypatch.undo()
        assert [one.title for one in again.partials()] == [FACTS.title]
        assert again.begin(FACTS.title).journal is not None


def test_a_commit_that_was_cut_off_is_kept_while_a_manifest_is_unreadable(store: Store) -> None:
    """Nobody knows whether the blob is listed, so neither it nor the journal beside it goes."""
    ingest = journalled(store)
    other = store.root / "manifests/hf.co/org/repo/Q4_K_M"
    whole = other.read_bytes()
    other.write_bytes(b"{")
    digest = "0" * 64
    (ingest.folder / "committed").write_text(f"sha256:{digest}")
    ingest.data.rename(store.root / "blobs" / f"sha256-{digest}")
    store.close()
    with Store.open(store.root) as again:
        with pytest.raises(StoreDamaged):
            again.begin(FACTS.title)
        other.write_bytes(whole)
        assert again.begin(FACTS.title).journal is not None
    assert ingest.data.read_bytes() == b"so far"
