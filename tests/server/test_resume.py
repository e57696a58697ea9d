"""Pulls that are ended at any moment, from sources that fail or change: the same bytes in the end, or a refusal."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

import quant.stream.pipeline
from quant.gguf.header import read_file
from registry.errors import DigestMismatch, DiskFull, RegistryError
from registry.net.network import Network
from server.pulls import provenance, puller
from server.pulls.frames import Done, Note, Planned, Progress, PullTask
from tests.hub import Faults, Hub
from tests.publishing import make, split
from tests.server.pulls import SMALL_NETWORK, SmallPartial, make_model, task

LEVEL = "Q4_K_M"


def pull(work: PullTask, send: puller.Send, network: Network = SMALL_NETWORK) -> Done:
    return puller.pull(work, send, network)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_model(tmp_path_factory.mktemp("source"))
    (folder / "README.md").write_text("---\nlicense: mit\nbase_model: org/first\n---\n")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(puller, "Partial", SmallPartial)
    monkeypatch.setattr(quant.stream.pipeline, "SLAB", 128 << 10)


@pytest.fixture(scope="module")
def running(model: Path) -> Iterator[Hub]:
    with Hub({"org/repo": model}) as hub:
        yield hub


@pytest.fixture
def hub(running: Hub, model: Path) -> Hub:
    """The hub as if nothing had happened to it."""
    running.repos.clear()
    running.push("org/repo", model)
    running.faults, running.flip_in, running.bandwidth, running.bytes_sent = Faults(), "", None, 0
    return running


@pytest.fixture
def work(hub: Hub, tmp_path: Path, cache: Path) -> PullTask:
    return task(f"org/repo:{LEVEL}", tmp_path / "store" / "ingest" / "x", cache, hub.url)


class Ended(Exception):
    """The pull's process came to its end."""


class Listener:
    """Keeps all frames, and ends the pull when `when` is true of the number of bytes read."""

    def __init__(self, when: Callable[[int], bool] = lambda done: False) -> None:
        self.frames: list[msgspec.Struct] = []
        self.when = when

    def __call__(self, frame: msgspec.Struct) -> None:
        self.frames.append(frame)
        if isinstance(frame, Progress) and frame.phase == "writing" and self.when(frame.completed):
            raise Ended

    @property
    def notes(self) -> list[str]:
        """Notes about the pull itself; another one says where kernels have to be compiled."""
        notes = [frame.text for frame in self.frames if isinstance(frame, Note)]
        return [text for text in notes if not text.startswith("compiling")]

    @property
    def planned(self) -> Planned:
        return next(frame for frame in self.frames if isinstance(frame, Planned))


def data(work: PullTask) -> bytes:
    return (Path(work.folder) / "data").read_bytes()


def end_midway(work: PullTask, hub: Hub) -> None:
    """Leave a pull that has read about half of the model."""
    hub.bandwidth = 20e6
    size = sum(file.size for file in hub.repos["org/repo"][hub.heads["org/repo"]].files.values())
    with pytest.raises(Ended):
        pull(work, Listener(lambda done: done > size / 2))
    hub.bandwidth = None


@pytest.fixture(scope="module")
def undisturbed(running: Hub, tmp_path_factory: pytest.TempPathFactory, cache: Path) -> tuple[Done, int]:
    """The pull that nothing disturbed, and what it fetched."""
    work = task(f"org/repo:{LEVEL}", tmp_path_factory.mktemp("store") / "ingest" / "x", cache, running.url)
    done = pull(work, Listener())
    assert done.sha256 == hashlib.sha256(data(work)).hexdigest()
    return done, running.bytes_sent


@pytest.fixture
def expected(undisturbed: tuple[Done, int], hub: Hub) -> Done:
    return undisturbed[0]


def test_a_pull_goes_on_where_it_was(work: PullTask, hub: Hub, undisturbed: tuple[Done, int]) -> None:
    expected, whole = undisturbed
    end_midway(work, hub)
    listener = Listener()
    done = pull(work, listener)
    assert (done.sha256, done.size, data(work)) == (expected.sha256, len(data(work)), data(work))
    assert listener.planned.resumed > 0.3 * done.size
    # Window, journal's step, slabs in hand, and the files that are read to plan.
    assert hub.bytes_sent - whole < (3 << 19) + (256 << 10) + 12 * (128 << 10) + 700_000
    assert not listener.notes


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_the_bytes_depend_on_nothing_but_the_source(
    work: PullTask, hub: Hub, expected: Done, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = puller.this_machine(Path(work.model.cache_folder))
    machine = replace(machine, hardware=replace(machine.hardware, cpus=threads))
    monkeypatch.setattr(puller, "this_machine", lambda *_: machine)
    monkeypatch.setattr(quant.stream.pipeline, "SLAB", 300_000 * threads)
    end_midway(work, hub)
    assert pull(work, Listener()).sha256 == expected.sha256


def test_the_file_says_where_it_comes_from(work: PullTask, hub: Hub, expected: Done, model: Path) -> None:
    pull(work, Listener())
    entries = read_file(Path(work.folder) / "data").metadata
    shards = sorted(path for path in model.iterdir() if path.suffix == ".safetensors")
    digests = [f"{path.name} sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in shards]
    assert entries["lm.source_digests"] == digests
    assert entries["lm.source_revision"] == hub.heads["org/repo"]
    assert entries["lm.source"] == entries["general.source.repo_url"] == f"{hub.url}/org/repo"
    assert (entries["lm.level"], entries["lm.version"]) == (LEVEL, provenance.VERSION)
    assert (entries["general.license"], entries["general.author"]) == ("mit", "org")
    assert entries["general.base_model.0.repo_url"].endswith("org/first")


def test_a_wrong_file_is_fetched_again_and_no_other(work: PullTask, hub: Hub, expected: Done) -> None:
    """One bit of the second file: what came before it stays, what was made of it goes."""
    flip(hub, "model-00002")
    before = len(hub.paths("cdn"))
    listener = Listener()
    assert pull(work, listener).sha256 == expected.sha256
    assert len(listener.notes) == 1 and "fetched again" in listener.notes[0] and "model-00002" in listener.notes[0]
    first = hub.repos["org/repo"][hub.heads["org/repo"]].files["model-00001-of-00003.safetensors"].sha256
    bodies = [path for path in hub.paths("cdn")[before:] if first in path]
    resumed = [frame.resumed for frame in listener.frames if isinstance(frame, Planned)]
    assert resumed[0] == 0 < resumed[1]
    assert len(bodies) < 20


def test_a_file_that_stays_wrong_is_refused(work: PullTask, hub: Hub, expected: Done) -> None:
    flip(hub, "model-00003", times=1 << 20)
    listener = Listener()
    with pytest.raises(DigestMismatch, match="model-00003"):
        pull(work, listener)
    assert len(listener.notes) == puller.TRIES - 1
    hub.faults.flip = None
    assert pull(work, Listener()).sha256 == expected.sha256


def flip(hub: Hub, name: str, times: int = 1) -> None:
    """Invert a bit of that file alone, some times: of a place that no other file reaches."""
    commit = hub.repos["org/repo"][hub.heads["org/repo"]]
    hub.flip_in = next(file for file in commit.files if name in file)
    hub.faults.flip, hub.faults.flips = 1_000_000, times


def test_the_revision_stays_what_it_was(work: PullTask, hub: Hub, expected: Done, tmp_path: Path) -> None:
    end_midway(work, hub)
    hub.push("org/repo", make_model(tmp_path / "newer", seed=1))
    assert pull(work, Listener()).sha256 == expected.sha256


def test_a_revision_that_is_gone_is_said(work: PullTask, hub: Hub, expected: Done, tmp_path: Path) -> None:
    end_midway(work, hub)
    hub.push("org/repo", make_model(tmp_path / "newer", seed=1))
    hub.repos["org/repo"] = {hub.heads["org/repo"]: hub.repos["org/repo"][hub.heads["org/repo"]]}
    listener = Listener()
    done = pull(work, listener)
    assert done.sha256 != expected.sha256
    assert done.config["lm"]["revision"] == hub.heads["org/repo"]
    assert "anew" in " ".join(listener.notes)
    assert listener.planned.resumed == 0


def test_another_version_begins_anew_and_says_so(
    work: PullTask, hub: Hub, expected: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    end_midway(work, hub)
    monkeypatch.setattr(provenance, "VERSION", "9.9.9")
    listener = Listener()
    assert pull(work, listener).sha256 != expected.sha256
    assert "anew" in listener.notes[0] and listener.planned.resumed == 0


@pytest.mark.parametrize("damage", [pytest.param("journal", marks=pytest.mark.slow), "torn journal", "data"])
def test_a_damaged_partial_is_not_gone_on_with(work: PullTask, hub: Hub, expected: Done, damage: str) -> None:
    end_midway(work, hub)
    journal, output = Path(work.folder) / "journal", Path(work.folder) / "data"
    if damage == "data":
        output.write_bytes(output.read_bytes()[:1000])
    else:
        journal.write_bytes(b"" if damage == "journal" else journal.read_bytes()[:300])
    listener = Listener()
    assert pull(work, listener).sha256 == expected.sha256
    assert listener.planned.resumed == 0


def test_a_folder_that_changes_between_begins_anew(tmp_path: Path, cache: Path) -> None:
    folder = make_model(tmp_path / "model")
    work = task(f"{folder}:{LEVEL}", tmp_path / "store" / "ingest" / "x", cache)
    with pytest.raises(Ended):
        pull(work, Listener(lambda done: done > 4_000_000))
    listener = Listener()
    first = pull(work, listener)
    assert listener.planned.resumed > 0 and not listener.notes
    shutil.rmtree(work.folder)
    Path(work.folder).mkdir()
    with pytest.raises(Ended):
        pull(work, Listener(lambda done: done > 4_000_000))
    make_model(folder, seed=1)
    listener = Listener()
    assert pull(work, listener).sha256 != first.sha256
    assert "anew" in listener.notes[0]


def test_the_rate_is_kept(work: PullTask, hub: Hub, expected: Done) -> None:
    work.limit_rate = 12e6
    began = time.monotonic()
    assert pull(work, Listener()).sha256 == expected.sha256
    assert time.monotonic() - began > 0.8 * 6e6 / work.limit_rate


@pytest.fixture
def little_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", place], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("no right to mount a small disk")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_disk_that_fills_up_is_said_and_nothing_is_lost(
    work: PullTask, hub: Hub, expected: Done, little_disk: Path
) -> None:
    work.folder = str(little_disk / "ingest" / "x")
    Path(work.folder).mkdir(parents=True)
    with pytest.raises(DiskFull, match="full"):
        pull(work, Listener())
    subprocess.run(["mount", "-o", "remount,size=20m", little_disk], check=True)
    listener = Listener()
    assert pull(work, listener).sha256 == expected.sha256
    assert listener.planned.resumed > 500_000


def kill_often(work: PullTask, kills: int, seed: int) -> list[str]:
    """Digests of the undisturbed pull and of those that were killed."""
    arguments = [json.dumps(msgspec.to_builtins(work)), str(kills), str(seed)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.server.pulls", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


@pytest.mark.slow
@pytest.mark.parametrize("kills", [6, pytest.param(100, marks=pytest.mark.long(name="pulls"))])
def test_killed_at_any_moment_the_result_is_the_same(work: PullTask, hub: Hub, kills: int) -> None:
    hub.bandwidth = 30e6
    size = sum(file.size for file in hub.repos["org/repo"][hub.heads["org/repo"]].files.values())
    digests = kill_often(work, kills, seed=kills)
    assert len(digests) == kills + 1
    assert len(set(digests)) == 1
    again = hub.bytes_sent / (kills + 2) - size
    # On the average: window, journal's step, slabs in hand, and the files that are read to plan.
    assert again < (3 << 19) + (256 << 10) + 12 * (128 << 10) + 700_000


@pytest.mark.parametrize(
    "kills", [pytest.param(4, marks=pytest.mark.slow), pytest.param(30, marks=pytest.mark.long(name="pulls"))]
)
def test_parts_killed_at_any_moment_are_joined_to_the_same_file(
    hub: Hub, tmp_path: Path, cache: Path, kills: int
) -> None:
    whole = make(tmp_path / "whole.gguf", "Q8_0")
    split(whole, tmp_path / "parts" / "m.gguf", 15)
    hub.push("org/parts", tmp_path / "parts")
    hub.bandwidth = 30e6
    digests = kill_often(task("org/parts", tmp_path / "store" / "ingest" / "x", cache, hub.url), kills, seed=3)
    assert len(digests) == kills + 1 and len(set(digests)) == 1


def spoil(hub: Hub, seed: int) -> None:
    """A network as bad as they come, differently each time."""
    hub.faults.cut_after, hub.faults.cuts = 1000 + 97_003 * seed % 900_000, 1 + seed % 5
    hub.faults.flip, hub.faults.flips = 700_000 + 31_013 * seed % 900_000, seed % 3
    hub.faults.ignore_ranges = seed % 4 == 3
    hub.faults.statuses = [503, 429, 500][: seed % 4]
    hub.faults.retry_after = "0"
    hub.faults.stall_after, hub.faults.stalls = 400_000, int(seed % 7 == 5)


@pytest.mark.parametrize("pulls", [3, pytest.param(100, marks=pytest.mark.long(name="pulls"))])
def test_from_a_bad_network_the_same_or_nothing(work: PullTask, hub: Hub, expected: Done, pulls: int) -> None:
    impatient = replace(SMALL_NETWORK, timeout=0.3)
    whole = 0
    for seed in range(pulls):
        shutil.rmtree(work.folder)
        Path(work.folder).mkdir()
        spoil(hub, seed)
        try:
            done = pull(work, Listener(), impatient)
        except RegistryError:
            continue
        assert done.sha256 == expected.sha256 == hashlib.sha256(data(work)).hexdigest()
        whole += 1
    assert whole > pulls / 2
