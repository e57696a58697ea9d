"""The clock on the wall is set by a day while the daemon works: what was promised in seconds takes those seconds."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from server.keys.file import change_keys
from server.keys.record import new_key
from tests.daemon import Daemon, put_model, wait_until

DAY = 86_400.0
# Python imports this in the daemon and in its children before anything else.
SITE = """
import datetime, pathlib, time
_file, _time, _datetime = pathlib.Path({path!r}), time.time, datetime.datetime
def _shift():
    return float(_file.read_text() or 0)
class Shifted(_datetime):
    @classmethod
    def now(cls, tz=None):
        return _datetime.now(tz) + datetime.timedelta(seconds=_shift())
time.time = lambda: _time() + _shift()
datetime.datetime = Shifted
"""


class Wall:
    """The daemon's clock on the wall."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._file = folder / "shift"
        (folder / "sitecustomize.py").write_text(SITE.format(path=str(self._file)))
        before = os.environ.get("PYTHONPATH", "")
        self.env = {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), before]))}
        self.set(0)

    def set(self, shift: float) -> None:
        """Let the clock show `shift` seconds more than the right time."""
        part = self._file.with_suffix(".part")
        part.write_text(str(shift))
        part.replace(self._file)


@pytest.fixture(scope="module")
def clocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Daemon, Wall]]:
    home = tmp_path_factory.mktemp("clocked")
    put_model(home)
    wall = Wall(home / "wall")
    with Daemon(home, script={"echo": True}, env=wall.env) as daemon:
        yield daemon, wall


def ask(daemon: Daemon) -> Any:
    answer = daemon.post("/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": "x"}]})
    assert answer.status == 200, answer.body
    return answer.json


@pytest.mark.parametrize("jump", [DAY, -DAY], ids=["forward", "back"])
def test_a_model_stays_as_long_as_was_asked_for(clocked: tuple[Daemon, Wall], jump: float) -> None:
    daemon, wall = clocked
    body = {"model": "tiny", "prompt": "", "stream": False}
    wall.set(0)
    assert daemon.post("/api/generate", body | {"keep_alive": 600}).status == 200
    pids = daemon.workers()
    wall.set(jump)
    assert ask(daemon)["created"] == pytest.approx(time.time() + jump, abs=60)  # the clock is set indeed
    (row,) = daemon.get("/api/ps").json["models"]
    left = datetime.fromisoformat(row["expires_at"]).timestamp() - time.time() - jump
    assert 500 < left < 660
    assert daemon.workers() == pids
    wall.set(0)
    assert daemon.post("/api/generate", body | {"keep_alive": 0.5}).status == 200
    wall.set(jump)
    wait_until(lambda: not daemon.workers(), 2)


@pytest.mark.parametrize("jump", [DAY, -DAY], ids=["forward", "back"])
def test_a_pull_goes_on(clocked: tuple[Daemon, Wall], jump: float) -> None:
    daemon, wall = clocked
    wall.set(0)
    lines = []
    with daemon.opened("POST", "/api/pull", {"model": "demo:Q8_0"}) as response:
        for raw in response:
            lines.append(json.loads(raw))
            if lines[-1]["phase"] == "planned":
                wall.set(jump)
    assert lines[-1]["status"] == "success", lines[-1]
    assert all((line.get("eta") or 0) >= 0 and line.get("rate", 0) >= 0 for line in lines)
    wall.set(0)
    assert "demo:Q8_0" in {row["name"] for row in daemon.listed()}
    assert daemon.ask("DELETE", "/api/delete", {"model": "demo:Q8_0"}).status == 200


def test_a_key_ends_by_the_clock_on_the_wall_and_a_revoked_one_for_ever(tmp_path: Path) -> None:
    put_model(tmp_path)
    secret, key = new_key("infer", expires=time.time() + 3600)
    gone, revoked = new_key("infer", revoked=time.time())
    change_keys(tmp_path / "keys.json", lambda keys: [*keys, key, revoked])
    wall = Wall(tmp_path / "wall")

    def status(sent: str) -> int:
        return daemon.get("/api/version", Authorization=f"Bearer {sent}").status

    with Daemon(tmp_path, script={"echo": True}, env=wall.env) as daemon:
        assert [status(secret), status(gone)] == [200, 401]
        wall.set(DAY)
        assert [status(secret), status(gone)] == [401, 401]
        wall.set(-DAY)
        assert [status(secret), status(gone)] == [200, 401]
