"""Processes that are killed in any phase of a pull, and daemons that begin at one instant: nothing is half there."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.daemon import Daemon

NAME = "demo:Q8_0"


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["daemon", "child"])
@pytest.mark.parametrize("phase", ["resolving", "planning", "planned", "writing", "checking", "committing"])
def test_a_pull_killed_in_any_phase_comes_in_whole_at_the_next_try(tmp_path: Path, phase: str, victim: str) -> None:
    daemon = Daemon(tmp_path, runtime="llama")
    with daemon.opened("POST", "/api/pull", {"model": NAME}) as response:
        for line in response:
            if json.loads(line)["phase"] == phase:
                break
        if victim == "daemon":
            daemon.kill()
        else:
            for child in daemon.children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            with contextlib.suppress(http.client.IncompleteRead):
                rest = [json.loads(line) for line in response]
                assert not rest or rest[-1]["phase"] in ("done", "failed")
    if victim == "daemon":
        daemon = Daemon(tmp_path, runtime="llama")
    with daemon:
        daemon.pull(NAME)
        (row,) = daemon.listed()
        assert row["name"] == NAME and not row.get("problem")
        store = tmp_path / "store"
        assert not list((store / "ingest").iterdir())
        for blob in (store / "blobs").iterdir():
            assert blob.name == f"sha256-{hashlib.sha256(blob.read_bytes()).hexdigest()}"
        said = daemon.post("/api/generate", {"model": NAME, "prompt": "Once", "stream": False})
        assert said.status == 200 and said.json["response"]
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".daemon.json.")]


@pytest.mark.slow
def test_daemons_that_begin_at_the_same_instant_on_one_home_are_one(tmp_path: Path) -> None:
    for _ in range(10):
        with ThreadPoolExecutor(2) as threads:
            both = list(threads.map(lambda _: Daemon(tmp_path), range(2)))
        (winner,), (loser,) = [each for each in both if each.url], [each for each in both if not each.url]
        assert "belongs to process" in loser.ready_line, loser.errors
        assert loser.ended() != 0
        with winner:
            assert winner.get("/api/version").status == 200
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".daemon.json.")]
