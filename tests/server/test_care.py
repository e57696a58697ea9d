"""`lm verify`, `lm du` and `lm prune`: what they find, and what they leave alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from quant.gguf.header import read_file
from registry.names import LIBRARY, LOCAL, Name
from registry.store.store import Store
from tests.cli.support import Cli
from tests.daemon import Daemon, put_model
from tests.storing import put

SHARED, ALONE = b"shared by two" * 100, b"of one model" * 100


def fill(home: Path) -> None:
    """Two models that share their weights, and one of its own."""
    with Store.open(home / "store") as store:
        for name, data in (("one", SHARED), ("two", SHARED), ("three", ALONE)):
            put(store, Name(LOCAL, LIBRARY, name, "Q8_0"), data, {"model_format": "gguf", "name": name})


def damage(home: Path, data: bytes) -> Path:
    """Change one byte of the blob that holds `data`, as a bad disk does."""
    blob = next(path for path in (home / "store/blobs").iterdir() if path.read_bytes() == data)
    blob.chmod(0o600)
    blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    return blob


def test_verify_names_every_model_that_a_hurt_blob_belongs_to(tmp_path: Path) -> None:
    fill(tmp_path)
    with Daemon(tmp_path) as daemon:
        well = daemon.post("/lm/verify", {}).lines
        assert well[-1]["hurt"] == [] and well[-1]["bytes"] > len(SHARED) + len(ALONE)
        assert {line["completed"] for line in well[:-1]} >= {len(SHARED), len(ALONE)}
        damage(tmp_path, SHARED)
        found = daemon.post("/lm/verify", {}).lines[-1]
        assert sorted(found["hurt"]) == ["one:Q8_0", "two:Q8_0"]
        assert "does not hash" in next(row["problem"] for row in found["models"] if row["name"] == "one:Q8_0")
        assert daemon.post("/lm/verify", {"model": "three"}).lines[-1]["hurt"] == []
        assert daemon.post("/lm/verify", {"model": "none"}).json["code"] == "model_not_found"


def test_usage_counts_what_is_shared_once_and_rm_leaves_it_to_the_other(tmp_path: Path) -> None:
    fill(tmp_path)
    with Daemon(tmp_path) as daemon:
        found = daemon.get("/lm/du").json
        rows = {row["name"]: row for row in found["models"]}
        assert rows["one:Q8_0"]["size"] > len(SHARED) > rows["one:Q8_0"]["alone"]
        assert rows["three:Q8_0"]["alone"] >= len(ALONE)
        assert found["blobs"] < sum(row["size"] for row in rows.values()) and found["free"] > 0
        daemon.ask("DELETE", "/api/delete", {"model": "one:Q8_0"})
        assert daemon.post("/lm/verify", {}).lines[-1]["hurt"] == []
        assert [row["name"] for row in daemon.listed()] == ["two:Q8_0", "three:Q8_0"] or len(daemon.listed()) == 2


def test_prune_shows_what_it_would_free_and_leaves_the_rest(tmp_path: Path) -> None:
    fill(tmp_path)
    with Daemon(tmp_path) as daemon:
        assert daemon.post("/lm/prune", {}).json["needless"] == []
        stray = tmp_path / "store/blobs" / f"sha256-{'0' * 64}"
        stray.write_bytes(b"x" * 1000)
        shown = daemon.post("/lm/prune", {"dry_run": True}).json
        assert (shown["bytes"], shown["removed"], stray.exists()) == (1000, False, True)
        assert shown["needless"][0]["reason"] == "no model lists it"
        assert daemon.post("/lm/prune", {}).json["bytes"] == 1000 and not stray.exists()
        assert daemon.post("/lm/verify", {}).lines[-1]["hurt"] == []


def test_nothing_is_needless_while_nobody_knows_what_is_listed(tmp_path: Path) -> None:
    put_model(tmp_path)
    with Daemon(tmp_path) as daemon:
        broken = tmp_path / "store/manifests/local/library/tiny/Q8_0"
        broken.write_bytes(b"{")
        stray = tmp_path / "store/blobs" / f"sha256-{'0' * 64}"
        stray.write_bytes(b"x")
        answer = daemon.post("/lm/prune", {})
        assert (answer.status, answer.json["code"]) == (500, "store_damaged") and stray.exists()
        assert daemon.post("/lm/verify", {}).lines[-1]["hurt"] == ["tiny:Q8_0"]


@pytest.mark.slow
def test_a_model_is_proved_to_be_made_of_its_source_and_of_no_other(tmp_path: Path) -> None:
    with Daemon(tmp_path, runtime="llama") as daemon:
        daemon.pull("demo:Q8_0")
        same = daemon.post("/lm/verify", {"model": "demo", "deep": "demo"}).lines[-1]
        assert same["same"] and same["tensors"] == same["equal"] > 10
        name = damage_tensor(tmp_path)
        wrong = daemon.post("/lm/verify", {"model": "demo", "deep": "demo"}).lines[-1]
        assert not wrong["same"] and wrong["equal"] == wrong["tensors"] - 1 and wrong["different"] == [name]
        told = Cli.at(tmp_path)("verify", "demo", "--deep", "demo")
        assert told.code == 1 and f"`{name}`" in told.err and "`lm verify demo:Q8_0`" in told.err
        assert not (tmp_path / "cache/deep").exists()


def damage_tensor(home: Path) -> str:
    """Change a byte in the middle of a tensor of the largest blob; the tensor's name."""
    blob = max((home / "store/blobs").iterdir(), key=lambda path: path.stat().st_size)
    header = read_file(blob)
    tensor = header.tensors[len(header.tensors) // 2]
    blob.chmod(0o600)
    data = bytearray(blob.read_bytes())
    data[header.data_offset + tensor.offset + tensor.nbytes // 2] ^= 1
    blob.write_bytes(data)
    return tensor.name
