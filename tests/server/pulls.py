"""Pulls without a daemon: a task for `server.pulls.puller.pull`, a model of several files, an end at any moment.

    python -m tests.server.pulls TASK KILLS SEED

pulls once, then KILLS times into an empty folder: each is killed at a random moment and begun again until it ends. One
line for each: the digest of what came out. The task is JSON; children are forked from a process that has compiled
everything.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import shutil
import signal
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec

import quant.stream.copying
import quant.stream.pipeline
from benchmarks import synthetic
from registry.net.hub import Hub
from registry.net.network import Network
from registry.net.retries import DOWNLOADS, FETCHES
from registry.store.partial import Partial
from runtime.messages import CacheConfig
from server.pulls import puller
from server.pulls.frames import Done, ModelRequest, PullTask
from server.pulls.puller import pull

SHARDS = 3
# A journal and a window small enough to matter to a small model, and no long waits before another try.
SmallPartial = partial(Partial, every_bytes=256 << 10, every_seconds=0.02)
SMALL_NETWORK = Network(
    window=3 << 19,
    fetches=replace(FETCHES, shortest=0.002, longest=0.002),
    downloads=replace(DOWNLOADS, shortest=0.002, longest=0.002),
)


def make_model(folder: Path, seed: int = 0) -> Path:
    """About 8 MB in three files."""
    sizes = ["--layers", "3", "--width", "256", "--feed-forward", "512", "--heads", "4", "--kv-heads", "2"]
    more = ["--vocabulary", "4224", "--shards", str(SHARDS), "--seed", str(seed)]
    options = synthetic.parser().parse_args([str(folder), *sizes, *more])
    synthetic.make(folder, options)
    return folder


def task(source: str, place: Path, cache: Path, endpoint: str = "http://127.0.0.1:1", rate: float = 0) -> PullTask:
    """A pull of `source` into the ingest folder `place`."""
    place.mkdir(parents=True, exist_ok=True)
    model = ModelRequest(source, Hub(endpoint), str(cache), 10**12, CacheConfig(2048, 1))
    return PullTask(model, str(place), rate)


def shrink() -> None:
    """Journal, window and slabs small enough to matter to a small model."""
    puller.Partial = SmallPartial  # type: ignore[misc, assignment]
    quant.stream.pipeline.SLAB = quant.stream.copying.PIECE = 128 << 10


def attempt(work: PullTask, seconds: float | None) -> bool:
    """Pull in a child, killed after `seconds`; whether it came to its end."""
    child = os.fork()
    if child == 0:
        try:
            pull(work, lambda frame: None, SMALL_NETWORK)
        finally:
            os._exit(0 if sys.exc_info()[0] is None else 1)
    if seconds is not None:
        with os.fdopen(os.pidfd_open(child)) as ending:
            if not select.select([ending], [], [], seconds)[0]:
                os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), status
    return status == 0


def main(work: PullTask, kills: int, seed: int) -> None:
    """See the module's docstring."""
    shrink()
    done = pull(work, lambda frame: None, SMALL_NETWORK)
    assert isinstance(done, Done)
    print(done.sha256, flush=True)
    rng = random.Random(seed)
    folder = Path(work.folder)

    def empty() -> None:
        shutil.rmtree(folder)
        folder.mkdir()

    empty()
    began = time.monotonic()
    assert attempt(work, None)
    whole = time.monotonic() - began
    for _ in range(kills):
        empty()
        if not attempt(work, rng.random() * whole):
            assert attempt(work, None)
        print(hashlib.sha256((folder / "data").read_bytes()).hexdigest(), flush=True)


if __name__ == "__main__":
    main(msgspec.convert(json.loads(sys.argv[1]), PullTask), int(sys.argv[2]), int(sys.argv[3]))
