"""The manifest that a model had before it was improved: how long it keeps its blobs, and the way back."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from registry.errors import NothingOlder, StoreFailed
from registry.names import parse
from registry.store import older
from registry.store.care import room
from registry.store.store import Store
from tests.storing import put, put_better

NAME, PLAIN, BETTER = "org/model:Q4_K_M", b"plain weights, some of them", b"better weights"


def blobs(store: Store) -> set[bytes]:
    return {blob.read_bytes() for blob in store.blobs.iterdir()}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(tmp_path / "store")
    put_better(store, put(store, NAME, PLAIN), BETTER)
    store.collect(())
    return store


def test_a_model_goes_back_byte_for_byte_and_keeps_its_age_and_its_name(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        put(store, "org/model:Q8_0", b"another level", chosen=False)
        before = put(store, NAME, PLAIN)
        os.utime(store.manifest_path(before.key), (1e9, 1e9))
        before = store.resolve(NAME)
        data = store.manifest(before)[0]
        better = put_better(store, before, BETTER)
        assert better.blob.read_bytes() == BETTER and better.card["mean"]["value"] == pytest.approx(0.1)
        assert (better.modified, better.params) == (before.modified, before.params)
        assert {before.digest, better.digest} <= better.digests, "a list that has the one knows the other"
        store.collect(())
        assert store.resolve("org/model").name == better.name and {PLAIN, BETTER} <= blobs(store)
        again = store.roll_back(better)
        assert store.manifest(again)[0] == data and again.modified == before.modified
        store.collect(())
        assert PLAIN in blobs(store) and BETTER not in blobs(store)
        with pytest.raises(NothingOlder, match="was not improved"):
            store.roll_back(again)


def test_the_way_back_survives_a_restart_and_a_new_card(store: Store) -> None:
    root = store.root
    store.close()
    with Store.open(root) as again:
        assert older.find(again, again.resolve(NAME)) is not None and PLAIN in blobs(again)
        assert again.roll_back(again.resolve(NAME)).blob.read_bytes() == PLAIN


@pytest.mark.parametrize("deed", ["pulled anew", "removed", "two weeks", "copied over"])
def test_the_older_file_goes_with_its_model_or_after_two_weeks(store: Store, deed: str) -> None:
    model = store.resolve(NAME)
    if deed == "pulled anew":
        put(store, NAME, b"others by now")
    elif deed == "removed":
        store.delete(model)
    elif deed == "copied over":
        store.copy(put(store, "org/other:Q8_0", b"other weights"), model.key)
    else:
        path = store.older_path(model.key)
        past = path.stat().st_mtime - older.SECONDS - 1
        os.utime(path, (past, past))
        with pytest.raises(NothingOlder, match="the older file is gone"):
            store.roll_back(model)
    store.collect(())
    assert PLAIN not in blobs(store) and not list((store.root / "older").rglob("Q4_K_M"))


def test_nothing_is_removed_while_nobody_knows_what_the_model_is(store: Store) -> None:
    path = store.manifest_path(parse(NAME).name)
    data = path.read_bytes()
    path.write_bytes(data[:-3])
    assert store.collect(()) == 0 and {PLAIN, BETTER} <= blobs(store)
    path.write_bytes(data)
    assert store.roll_back(store.resolve(NAME)).blob.read_bytes() == PLAIN


def test_a_copy_of_an_improved_model_has_no_older_file_of_its_own(store: Store) -> None:
    copied = store.copy(store.resolve(NAME), parse("org/copy:Q4_K_M").name)
    with pytest.raises(NothingOlder):
        store.roll_back(copied)
    assert store.roll_back(store.resolve(NAME)).blob.read_bytes() == PLAIN
    store.collect(())
    assert {PLAIN, BETTER} <= blobs(store), "the copy has the better weights"


def test_a_swap_over_another_manifest_than_was_measured_is_refused(store: Store) -> None:
    stale = store.resolve(NAME)
    put(store, NAME, b"pulled anew")
    with pytest.raises(StoreFailed, match="was replaced in the meantime"):
        put_better(store, stale)
    assert store.resolve(NAME).blob.read_bytes() == b"pulled anew"


class Usage(NamedTuple):
    free: int


def test_a_new_file_takes_the_room_of_the_oldest_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    later = put_better(store, put(store, "org/later:Q4_K_M", b"the other model's"), b"and its better file")
    os.utime(store.older_path(parse(NAME).name), (1e9, 1e9 + 1))
    past = store.older_path(later.key).stat().st_mtime - 60
    os.utime(store.older_path(parse(NAME).name), (past, past))
    kept = [len(PLAIN), len(b"the other model's")]
    found = room(store, ())
    assert sum(found.older.values()) > sum(kept) and not found.unlisted
    free = 1000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free - sum(len(each) for each in blobs(store) & {PLAIN})))
    assert store.obtainable_bytes() > store.free_bytes()
    store.make_room(free - len(PLAIN), ())
    assert PLAIN in blobs(store), "there was room"
    store.make_room(free, ())
    assert PLAIN not in blobs(store) and older.find(store, later) is not None
    assert store.resolve(NAME).blob.read_bytes() == BETTER
