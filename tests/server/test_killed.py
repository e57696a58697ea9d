"""Processes that are killed in any phase of a pull, and daemons that begin at one instant: nothing is half there."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.daemon import Answer, Daemon, put_model, wait_until

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
    for _ in range(20):
        with ThreadPoolExecutor(2) as threads:
            both = list(threads.map(lambda _: Daemon(tmp_path), range(2)))
        (winner,), (loser,) = [each for each in both if each.url], [each for each in both if not each.url]
        assert f"belongs to process {winner.pid}" in loser.ready_line, loser.errors
        assert loser.ended() != 0
        with winner:
            assert winner.get("/api/version").status == 200
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".daemon.json.")]


# An answer of three pieces that stands still for a moment in each of its phases.
PHASES = {"load_delay": 0.5, "prompt_delay": 1.0, "tokens": ["one ", "two ", "three"], "delay": 0.2}
ROUTES = {"ollama": "/api/chat", "openai": "/v1/chat/completions"}
QUESTION = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "stream": True}


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("slow")
    put_model(home)
    with Daemon(home, script=PHASES) as daemon:
        yield daemon


def kill_worker(daemon: Daemon) -> None:
    (child,) = daemon.children()
    os.kill(child.pid, signal.SIGKILL)


def told(body: bytes) -> tuple[str, Any]:
    """The text of a stream in either dialect, and its last object."""
    lines = [line.removeprefix(b"data: ") for line in body.splitlines() if line.strip()]
    values = [json.loads(line) for line in lines if line != b"[DONE]"]
    parts = [value.get("message") or value.get("choices", [{}])[0].get("delta", {}) for value in values]
    return "".join(part.get("content") or "" for part in parts), values[-1]


def killed_when_asked(daemon: Daemon, route: str, phase: str) -> Answer:
    """The answer to a question whose worker is killed before its first text."""
    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(daemon.post, route, QUESTION)
        if phase == "loading":
            wait_until(daemon.children, 5)
        else:
            wait_until(lambda: any(row["active"] for row in daemon.get("/api/ps").json["models"]), 5)
        kill_worker(daemon)
        return answer.result()


def killed_after(daemon: Daemon, route: str, text: bytes) -> Answer:
    """The answer to a question whose worker is killed as soon as `text` has come."""
    with daemon.opened("POST", route, QUESTION) as response:
        body = b""
        while text not in body:
            body += response.readline()
        kill_worker(daemon)
        return Answer(response.status, {}, body + response.read())


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ROUTES)
@pytest.mark.parametrize("phase", ["loading", "prefill", "decoding", "last token", "between answers"])
def test_a_worker_killed_in_any_phase_of_an_answer_is_told_and_replaced(slow: Daemon, phase: str, dialect: str) -> None:
    route = ROUTES[dialect]
    keep_alive = 0 if phase == "loading" else "5m"
    slow.post("/api/generate", {"model": "tiny", "prompt": "", "keep_alive": keep_alive, "stream": False})
    if phase == "between answers":
        kill_worker(slow)
        answer = slow.post(route, QUESTION)
    elif phase in ("loading", "prefill"):
        wait_until(lambda: bool(slow.children()) != (phase == "loading"), 5)
        answer = killed_when_asked(slow, route, phase)
    else:
        answer = killed_after(slow, route, b"one" if phase == "decoding" else b"three")
    text, last = told(answer.body)
    if "error" in last:
        error = last["error"] if dialect == "openai" else last
        assert error["code"] == ("load_failed" if phase == "loading" else "worker_died")
        assert "SIGKILL" in error["message" if dialect == "openai" else "error"]
        assert answer.status == (500 if not text else 200)
    else:
        assert phase in ("last token", "between answers") and text == "one two three"
    again = slow.post(route, QUESTION)
    assert again.status == 200 and told(again.body)[0] == "one two three"
    assert len(slow.children()) == 1
