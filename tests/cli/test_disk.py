"""A disk that is full or read-only: what frees room works, what is here is served. Needs the right to mount a tmpfs."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.support import Cli
from tests.daemon import put_model, wait_until


@contextlib.contextmanager
def mounted(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A disk of that size at `folder`."""
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=700", "tmpfs", str(folder)]
    try:
        subprocess.run(mounting, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def command_at(home: Path) -> Cli:
    """`lm` with a daemon of its own at a port that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Cli.at(home, f"127.0.0.1:{probe.getsockname()[1]}")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home on a disk of 2 MiB, with the model `tiny` at two levels."""
    with mounted(tmp_path / "home", 2) as folder:
        for level in ("F32", "Q8_0"):
            put_model(folder, level=level)
        yield folder


@pytest.fixture
def lm(home: Path) -> Cli:
    return command_at(home)


def answers(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def served(lm: Cli, home: Path) -> Iterator[None]:
    """A daemon with the scripted engine."""
    process = lm.popen("serve", "--runtime", "fake", "--home", str(home))
    try:
        port = int(lm.env["LM_HOST"].rpartition(":")[2])
        wait_until(lambda: process.poll() is not None or answers(port), 20)
        yield
    finally:
        process.terminate()
        process.communicate()


def fill(home: Path) -> None:
    with contextlib.suppress(OSError), (home / "ballast").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


@pytest.mark.slow
def test_what_frees_room_works_on_a_full_disk(lm: Cli, home: Path) -> None:
    fill(home)
    removed = lm("rm", "tiny:Q8_0")
    try:
        assert removed.code == 0, removed.err
        assert lm("list").out.count("tiny:") == 1
        assert lm("stop", "tiny").code == 0
        assert lm("stop", "--daemon").code == 0
    finally:
        lm("stop", "--daemon")
    assert not [path for path in home.iterdir() if "daemon.json" in path.name]


@pytest.mark.slow
def test_a_read_only_home_serves_what_is_in_it(lm: Cli, home: Path) -> None:
    (home / "store" / "ingest" / "leftover").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(home)], check=True)
    with served(lm, home):
        answer = lm("run", "tiny:F32", "hi")
        assert answer.out.strip() == "Once upon a time", answer.err
        refused = lm("rm", "tiny:F32")
        assert refused.code == 1 and "read-only" in refused.err.lower()
        assert lm("pull", "demo").code == 1
        assert lm("list").out.count("tiny:") == 2


@pytest.mark.slow
def test_pulls_ask_for_the_room_that_they_need_and_say_when_it_ends(tmp_path: Path) -> None:
    """The demo takes 6.4 MB at Q8_0: it comes onto a disk of 9 MiB, comes again when that is full, and then says so."""
    with mounted(tmp_path / "home", 9) as home, served(lm := command_at(home), home):
        assert lm("pull", "demo:Q8_0").code == 0
        fill(home)
        again = lm("pull", "demo:Q8_0")
        assert again.code == 0 and "nothing has changed" in again.err
        other = lm("pull", "demo:Q4_0")
        assert other.code == 5 and "of disk" in other.err and "make room" in other.err
        (home / "ballast").unlink()
        assert lm("list").out.count("demo:") == 1
