"""A file that another program keeps and that no link can share is read in place; its owner does as it likes."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import pytest

from registry.bundles.reading import Import
from registry.bundles.writing import Export
from registry.errors import StoreDamaged
from registry.names import Name
from registry.store import care, sharing
from registry.store.store import Store
from tests import storing
from tests.registry.test_found import WEIGHTS, take_over

DIGEST = f"sha256:{hashlib.sha256(WEIGHTS).hexdigest()}"


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of another user's: it can have no hard link, and the disk knows no reflinks."""
    monkeypatch.setattr(sharing, "reflink", lambda source, target: False)
    monkeypatch.setattr(sharing, "link", lambda source, target: False)
    path = tmp_path / "ollama" / f"sha256-{DIGEST[7:]}"
    path.parent.mkdir()
    path.write_bytes(WEIGHTS)
    path.chmod(0o640)
    return path


def test_it_is_read_where_it_lies_and_stays_when_the_model_goes(foreign: Path, tmp_path: Path) -> None:
    link = tmp_path / "snapshot.gguf"  # as Hugging Face's cache has it
    link.symlink_to(foreign)
    with Store.open(tmp_path / "store") as store:
        assert take_over(store, link, place=True) == "place"
        blob = store.resolve("tale").blob
        assert blob.is_symlink() and blob.readlink() == foreign and blob.read_bytes() == WEIGHTS
    with Store.open(tmp_path / "store") as store:
        assert store.resolve("tale").blob.read_bytes() == WEIGHTS
        usage = care.room(store, ())
        (row,) = usage.models
        assert row.elsewhere == usage.elsewhere == len(WEIGHTS) and row.alone == row.size < 200
        assert care.check(store, store.models(), lambda *_: None, lambda: False).hurt == []
        store.delete(store.resolve("tale"))
        assert store.unlisted(())[DIGEST] == 0  # nothing is freed
        store.collect(())
    assert foreign.read_bytes() == WEIGHTS and foreign.stat().st_mode & 0o777 == 0o640
    assert not list((tmp_path / "store" / "shared").iterdir())
    assert not list((tmp_path / "store" / "blobs").iterdir())


def test_it_is_hashed_again_when_it_changed(foreign: Path, tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        take_over(store, foreign, place=True)
        os.utime(foreign)  # another time, the same bytes
        assert store.resolve("tale").size
        with foreign.open("r+b") as file:
            file.write(b"????")
        with pytest.raises(StoreDamaged, match="another program, which changed it"):
            store.resolve("tale")
        replacement = foreign.with_name("new")
        replacement.write_bytes(WEIGHTS)
        replacement.replace(foreign)  # another inode
        assert store.resolve("tale").size
        foreign.write_bytes(b"short")
        with pytest.raises(StoreDamaged, match="has 5 bytes instead of"):
            store.resolve("tale")


def test_a_file_that_is_gone_is_said_and_comes_back(foreign: Path, tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        take_over(store, foreign, place=True)
        foreign.rename(foreign.with_name("away"))
        with pytest.raises(StoreDamaged, match=f"its file `{foreign}`, which another program kept, is gone") as error:
            store.resolve("tale")
        assert "lm pull" in error.value.hint
        (model,) = store.models()
        checked = care.check(store, [model], lambda *_: None, lambda: False)
        assert str(foreign) in checked.problems[model.name]
        assert care.room(store, ()).elsewhere == len(WEIGHTS)
        foreign.with_name("away").rename(foreign)
        assert store.resolve("tale").size
        foreign.unlink()
        assert take_over(store, _again(foreign, tmp_path), place=True) == "place"  # a pull mends it
        assert store.resolve("tale").blob.read_bytes() == WEIGHTS


def _again(foreign: Path, tmp_path: Path) -> Path:
    other = tmp_path / "elsewhere.gguf"
    other.write_bytes(WEIGHTS)
    return other


def test_a_copy_takes_its_place(foreign: Path, tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        take_over(store, foreign, place=True)
        assert take_over(store, foreign, link=False) == ""
        blob = store.resolve("tale").blob
        assert not blob.is_symlink() and not list(store.shared.folder.iterdir())
        foreign.unlink()
        assert take_over(store, _again(foreign, tmp_path), place=True) == "place"  # what is lm's own stays so
        assert not store.resolve("tale").blob.is_symlink()


def test_a_file_of_the_store_itself_is_never_its_own_place(foreign: Path, tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        take_over(store, foreign, link=False)
        assert take_over(store, store.resolve("tale").blob, place=True) == ""
        assert store.resolve("tale").blob.read_bytes() == WEIGHTS


def test_a_link_that_nobody_noted_is_not_followed(foreign: Path, tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        take_over(store, foreign, link=False)
        blob = store.resolve("tale").blob
        blob.unlink()
        blob.symlink_to(foreign)
        with pytest.raises(StoreDamaged, match="no regular file"):
            store.resolve("tale")
        assert store.blob_status(DIGEST) is not None and not store.holds(DIGEST, len(WEIGHTS))


def test_a_bundle_carries_its_bytes_and_one_that_comes_mends_it(foreign: Path, tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        take_over(store, foreign, place=True)
        export = Export(store, store.models())
        parts = [
            piece.content if isinstance(piece.content, bytes) else piece.content.read_bytes()
            for piece in export.pieces()
        ]
        bundle = b"".join(parts)
        assert len(bundle) == export.size
        with Store.open(tmp_path / "other") as other:
            Import(other, _Stream(bundle), lambda *_: None).run(lambda line: None)
            assert other.resolve("tale").blob.read_bytes() == WEIGHTS
        foreign.write_bytes(b"changed")
        Import(store, _Stream(bundle), lambda *_: None).run(lambda line: None)
        assert store.resolve("tale").blob.read_bytes() == WEIGHTS and not store.resolve("tale").blob.is_symlink()
    assert foreign.read_bytes() == b"changed"


def test_a_copied_model_keeps_the_file_when_the_first_goes(foreign: Path, tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        take_over(store, foreign, place=True)
        store.copy(store.resolve("tale"), Name("local", "library", "twin", "latest"))
        store.delete(store.resolve("tale"))
        store.collect(())
        assert store.resolve("twin").blob.readlink() == foreign
        storing.put(store, "org/other:Q8_0", WEIGHTS, {"model_format": "gguf"}, {})
        assert not store.resolve("twin").blob.is_symlink()  # the same bytes came in as lm's own
    assert foreign.read_bytes() == WEIGHTS


class _Stream(io.BytesIO):
    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        return super().readinto(target)
