"""Models of other programs, through the daemon: listed, taken over without a copy where the disk allows."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.store import sharing
from tests.daemon import Daemon
from tests.oci import digest
from tests.publishing import make
from tests.registry.test_found import ollama_store


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("others")
    ollama_store(place / "ollama", make(place / "made.gguf", "Q4_0").read_bytes())
    make(place / "studio" / "publisher" / "saga" / "saga.gguf", "Q8_0")
    return place


@pytest.fixture(scope="module")
def daemon(place: Path) -> Iterator[Daemon]:
    env = {
        "OLLAMA_MODELS": str(place / "ollama"),
        "HF_HOME": str(place / "hf"),
        "LM_STUDIO_MODELS": str(place / "studio"),
    }
    with Daemon(place / "home", script={"echo": True}, env=env) as daemon:
        yield daemon


@pytest.fixture
def other_disk(place: Path) -> Iterator[Path]:
    """A folder on another disk than the store's."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == place.stat().st_dev:
        pytest.skip("there is no other disk")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def blob_of(daemon: Daemon, path: Path) -> Path:
    return daemon.home / "store" / "blobs" / digest(path.read_bytes()).replace(":", "-")


def clones(folder: Path) -> bool:
    """Whether the disk knows reflinks."""
    one, other = folder / "one", folder / "other"
    one.write_bytes(b"x" * 4096)
    with one.open("rb") as source, other.open("wb") as target:
        return sharing.reflink(source.fileno(), target.fileno())


def test_ollamas_model_keeps_its_name_and_its_settings(daemon: Daemon, place: Path) -> None:
    rows = [row for row in daemon.get("/lm/found").json["models"] if row["program"] != "package"]
    assert [(row["program"], row["title"]) for row in rows] == [("ollama", "tale:3b"), ("lm studio", "publisher/saga")]
    assert daemon.pull(rows[0]["name"])["name"] == "tale:3b"
    shown = daemon.post("/api/show", {"model": "tale:3b"}).json
    assert shown["system"] == "Be brief." and shown["lm"]["source"] == "ollama.com/library/tale:3b"
    theirs = next(path for path in (place / "ollama" / "blobs").iterdir() if path.stat().st_size > 1000)
    assert blob_of(daemon, theirs).samefile(theirs) or clones(place)


def test_a_copy_is_made_where_it_is_asked_for(daemon: Daemon, place: Path) -> None:
    theirs = place / "studio" / "publisher" / "saga" / "saga.gguf"
    mode = theirs.stat().st_mode
    body = {"model": str(theirs.parent), "copy": True, "stream": False}
    assert daemon.post("/api/pull", body).json["status"] == "success"
    assert not blob_of(daemon, theirs).samefile(theirs)
    # A file that is in no other program's store is copied always: its owner may write to it.
    own = make(place / "own" / "x.gguf", "Q4_1")
    daemon.pull(str(own))
    assert not blob_of(daemon, own).samefile(own)
    assert theirs.stat().st_mode == mode


def test_a_file_on_another_disk_is_read_where_it_is(daemon: Daemon, place: Path, other_disk: Path) -> None:
    theirs = make(other_disk / "theirs.gguf", "Q5_0")
    manifest = ollama_store(other_disk / "models", theirs.read_bytes(), "registry.ollama.ai/library/far/1b")
    kept = other_disk / "models" / "blobs" / digest(theirs.read_bytes()).replace(":", "-")
    assert daemon.pull(str(manifest))["name"] == "far:1b"
    assert blob_of(daemon, kept).readlink() == kept
    question = {"model": "far:1b", "prompt": "Say hello", "stream": False}
    assert daemon.post("/api/generate", question).json["response"]
    usage = next(row for row in daemon.get("/lm/du").json["models"] if row["name"] == "far:1b")
    assert usage["elsewhere"] == kept.stat().st_size > usage["size"]
    kept.rename(kept.with_name("away"))
    answer = daemon.post("/api/show", {"model": "far:1b"})
    assert answer.status >= 400 and f"its file `{kept}`, which another program kept, is gone" in answer.json["error"]
    kept.with_name("away").rename(kept)
    assert daemon.post("/api/show", {"model": "far:1b"}).status == 200
    assert daemon.ask("DELETE", "/api/delete", {"model": "far:1b"}).status == 200
    assert kept.exists()
