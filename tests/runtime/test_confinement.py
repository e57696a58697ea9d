"""The walls around a worker: what it may still do behind them, what not, and that nothing is missing silently."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime.confinement import SWITCHED_OFF, Confinement, filter_program, trial
from server.config import Config
from server.doctor.bounds import bounds
from tests.daemon import Daemon, put_model

# Gives up what a worker does, then tries what a program would that took the worker over; prints what came of each.
TRY = """
import ctypes, json, os, socket, subprocess, sys, threading
from pathlib import Path
from runtime.confinement import cards_here, confine
blobs, other, stranger = sys.argv[1:]
# An editable installation is found by a hook, and its folder is not in the path.
sys.path[:] = [each for each in sys.path if each and not Path(each, "runtime").is_dir()]
made = confine([Path(blobs)], cards=False)
def attempt(act):
    try:
        act()
    except OSError as error:
        return error.strerror
    return "done"
def thread():
    ran = []
    worker = threading.Thread(target=ran.append, args=(1,))
    worker.start()
    worker.join()
    assert ran
print(json.dumps({
    "walls": [made.landlock, made.seccomp, list(made.missing)],
    "blob": attempt(lambda: Path(blobs, "blob").read_bytes()),
    "thread": attempt(thread),
    "import": attempt(lambda: __import__("wave")),
    "own module": attempt(lambda: __import__("runtime.fake")),
    "memory": attempt(lambda: Path("/proc/self/statm").read_text()),
    "other file": attempt(lambda: Path(other).read_bytes()),
    "write": attempt(lambda: Path(blobs, "new").write_bytes(b"x")),
    "change": attempt(lambda: Path(blobs, "blob").open("r+b")),
    "remove": attempt(lambda: Path(blobs, "blob").unlink()),
    "secrets of others": attempt(lambda: Path(f"/proc/{stranger}/environ").read_bytes()),
    "socket": attempt(lambda: socket.socket()),
    "program": attempt(lambda: subprocess.run(["true"])),
    "process": attempt(lambda: os.fork() or os._exit(0)),
    "signal": attempt(lambda: os.kill(int(stranger), 0)),
}))
"""
OPEN = ("blob", "thread", "import", "own module", "memory")
FILES = ("other file", "write", "change", "remove", "secrets of others")
CALLS = ("socket", "program", "process")


@pytest.fixture(scope="module")
def walls() -> Confinement:
    """What this system gives; a test of a wall that it has not is skipped with the reason."""
    return trial()


def attempts(folder: Path) -> dict[str, Any]:
    blobs = folder / "blobs"
    blobs.mkdir()
    (blobs / "blob").write_bytes(b"weights")
    (folder / "keys.json").write_text("secret")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        words = [sys.executable, "-c", TRY, str(blobs), str(folder / "keys.json"), str(stranger.pid)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        stranger.communicate(b"\n")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_behind_the_walls_only_the_blobs_are_read(tmp_path: Path, walls: Confinement) -> None:
    found = attempts(tmp_path)
    assert found["walls"] == [walls.landlock, walls.seccomp, list(walls.missing)]
    assert {name: found[name] for name in OPEN} == dict.fromkeys(OPEN, "done")
    if walls.landlock:
        assert {found[name] for name in FILES} == {"Permission denied"}, found
    if walls.seccomp:
        assert {found[name] for name in CALLS} <= {"Operation not permitted", "Permission denied"}, found
    if walls.landlock >= 6:
        assert found["signal"] == "Operation not permitted"


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_is_whole(machine: str) -> None:
    """Every jump lands inside, and the last line allows: an interpreter of the kernel's rules for such programs."""
    program = filter_program(machine)
    lines = [program[start : start + 8] for start in range(0, len(program), 8)]
    architecture = 0xC000003E if machine == "x86_64" else 0xC00000B7

    def judged(number: int, first: int = 0, arch: int = architecture) -> int:
        data = {0: number, 4: arch, 16: first}
        register, at = 0, 0
        while True:
            code, yes, no = int.from_bytes(lines[at][:2], "little"), lines[at][2], lines[at][3]
            value = int.from_bytes(lines[at][4:], "little")
            at += 1
            if code == 0x06:
                return value
            if code == 0x20:
                register = data[value]
            else:
                true = {0x15: register == value, 0x35: register >= value, 0x45: bool(register & value)}[code]
                at += yes if true else no

    numbers = {"x86_64": (0, 41, 59, 56, 435), "aarch64": (63, 198, 221, 220, 435)}[machine]
    read, socket, execve, clone, clone3 = numbers
    assert judged(read) == 0x7FFF0000
    assert judged(socket) == judged(execve) == 0x00050001
    assert judged(clone, 0x003D0F00) == 0x7FFF0000, "a thread"
    assert judged(clone, 0x01200011) == 0x00050001, "a process"
    assert judged(clone3) == 0x00050026
    assert judged(read, arch=0x40000003) == 0x00050001, "a call of another architecture"
    if machine == "x86_64":
        assert judged(0x40000000 | read) == 0x00050001, "x32"


def test_a_worker_tells_its_walls_and_so_does_the_daemon(tmp_path: Path, walls: Confinement) -> None:
    put_model(tmp_path)
    with Daemon(tmp_path, script={"tokens": ["a"]}) as daemon:
        assert daemon.post("/api/generate", {"model": "tiny", "prompt": "x"}).status == 200
        told = daemon.get("/health").json["sandbox"]
        assert told == {"landlock": walls.landlock, "seccomp": walls.seccomp, "missing": list(walls.missing)}
        (worker,) = daemon.workers()
        status = Path(f"/proc/{worker}/status").read_text()
        assert "NoNewPrivs:\t1" in status
        if walls.seccomp:
            assert "Seccomp:\t2" in status
        limits = Path(f"/proc/{worker}/limits").read_text()
        assert [line.split()[4:6] for line in limits.splitlines() if "core file" in line] == [["1", "1"]]


def test_what_is_switched_off_is_told(tmp_path: Path) -> None:
    put_model(tmp_path)
    with Daemon(tmp_path, script={}, env={"LM_SANDBOX": "0"}) as daemon:
        assert daemon.get("/health").json["sandbox"]["missing"] == [SWITCHED_OFF]
    (finding,) = bounds(Config.load({"home": tmp_path}, {"LM_SANDBOX": "0"}))
    assert finding.state == "warn"
    assert SWITCHED_OFF in finding.found


def test_a_system_without_walls_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    missing = Confinement(missing=("no Landlock: the kernel has none",))
    monkeypatch.setattr("server.doctor.bounds.trial", lambda: missing)
    (finding,) = bounds(Config.load({"home": tmp_path}, {}))
    assert finding.state == "warn"
    assert "no Landlock" in finding.found
    assert finding.hint
