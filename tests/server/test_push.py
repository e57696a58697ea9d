"""`/api/push` and `lm push`: progress, forms, refusals, and what a client sees that leaves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon import Daemon, put_model, wait_until
from tests.taking import Ask, Taking, digest


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("home")
    put_model(home)
    with Daemon(home) as running:
        yield running


def test_a_push_tells_how_it_goes_and_ends_in_success(daemon: Daemon) -> None:
    with Taking() as registry:
        lines = daemon.post("/api/push", {"model": "tiny", "to": f"{registry.host}/ns/tiny:v1"}).lines
        assert lines[0]["status"] == "retrieving manifest" and lines[-1]["status"] == "success"
        assert lines[-2]["status"] == "pushing manifest"
        bars = [line for line in lines if "digest" in line]
        assert {line["total"] for line in bars} == {line["completed"] for line in bars if line.get("outcome")}
        assert lines[-1]["manifest_digest"] == digest(registry.manifests["ns/tiny", "v1"])
        again = daemon.post("/api/push", {"model": "tiny", "to": f"{registry.host}/ns/tiny:v1", "stream": False})
        assert (again.status, again.json["status"]) == (200, "success")
        pack = {"model": "tiny", "to": f"{registry.host}/ns/tiny:pack", "format": "modelpack", "stream": False}
        assert daemon.post("/api/push", pack).json["status"] == "success"
        document = json.loads(registry.manifests["ns/tiny", "pack"])
        assert document["annotations"]["io.lm.recipe"] == "F32: a test wants it"


def test_a_push_that_cannot_be_says_why(daemon: Daemon) -> None:
    nowhere = daemon.post("/api/push", {"model": "tiny"})
    assert (nowhere.status, nowhere.json["code"]) == (400, "bad_name") and "lm push tiny:F32 HOST" in nowhere.json[
        "hint"
    ]
    assert daemon.post("/api/push", {"model": "none", "to": "127.0.0.1:1/a/b"}).status == 404
    assert daemon.post("/api/push", {"model": "tiny", "to": "ollama.com/me/tiny"}).lines[-1]["code"] == "access_denied"
    far = daemon.post("/api/push", {"model": "tiny", "to": "127.0.0.1:1/a/b"}).lines[-1]
    assert far["code"] == "source_unavailable" and "cannot be reached" in far["error"]


def test_a_client_that_leaves_ends_its_push(daemon: Daemon, tmp_path: Path) -> None:
    with Taking() as registry:
        registry.script = _waiting
        with daemon.opened("POST", "/api/push", {"model": "tiny", "to": f"{registry.host}/ns/tiny:v1"}) as response:
            assert json.loads(response.readline())["status"] == "retrieving manifest"
            wait_until(lambda: registry.count("HEAD") > 2, 10)
        asked = len(registry.asked)
        with Taking() as other:  # the daemon goes on to answer, and the push goes on elsewhere
            assert daemon.post("/api/push", {"model": "tiny", "to": f"{other.host}/a/b:c"}).lines[-1]["phase"] == "done"
        assert len(registry.asked) <= asked + 2 and not registry.manifests


def _waiting(ask: Ask) -> tuple[int, dict[str, str]] | None:
    """Busy for as long as the client stays."""
    return (429, {"Retry-After": "0"}) if ask.method == "HEAD" else None
