"""Leases: what was sent stays for an hour, or until a model is made of it; not longer, and not without bound."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from registry.errors import DigestMismatch, StoreFailed
from registry.store import leases
from registry.store.arriving import ArrivingFile
from registry.store.leases import MOST, SECONDS, Leases
from registry.store.store import Store


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def sent(store: Store, data: bytes, name: str) -> None:
    coming = ArrivingFile(store, name, len(data))
    try:
        coming.write(data)
        coming.finish()
    finally:
        coming.abandon()


def test_a_file_that_was_sent_stays_for_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(leases.time, "monotonic", lambda: now)
    with Store.open(tmp_path) as store:
        sent(store, b"data", digest(b"data"))
        blob = tmp_path / "blobs" / digest(b"data").replace(":", "-")
        store.collect(())
        assert blob.read_bytes() == b"data" and blob.stat().st_mode & 0o777 == 0o444
        now += SECONDS - 1
        store.collect(())
        assert store.blob(digest(b"data")) == blob  # whoever asks for it has an hour again
        now += SECONDS + 1
        store.collect(())
        assert store.blob(digest(b"data")) is None


def test_other_bytes_are_never_kept(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        with pytest.raises(DigestMismatch):
            sent(store, b"other", digest(b"data"))
        assert not list((tmp_path / "blobs").iterdir()) and not list((tmp_path / "ingest").iterdir())
        assert not store.leases.held()


def test_two_may_send_the_same_file_at_once(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        one, other = (ArrivingFile(store, digest(b"data"), None) for _ in range(2))
        for each in (one, other):
            each.write(b"data")
        one.finish()
        other.finish()
        assert [path.read_bytes() for path in (tmp_path / "blobs").iterdir()] == [b"data"]


def test_leases_have_a_bound() -> None:
    found = Leases()
    for number in range(MOST):
        found.take(str(number))
    found.take("0")
    with pytest.raises(StoreFailed, match="wait for the models"):
        found.take("one more")
    found.release(["0"])
    found.take("one more")
