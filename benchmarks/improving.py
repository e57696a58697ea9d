"""A chat while a model is improved, against the same chat alone, in one run: `python -m benchmarks.improving [ROUNDS]`.

The demo is improved again and again, and asked in each of its phases while their processes compute: the tokens of an
answer in a second, and the time to the first one, as ratios of medians.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from registry.sources.opening import DEMO
from tests.daemon import Daemon

NAME, ASKED, ROUNDS, TOKENS = "original:Q3_K_M", "original:Q8_0", 3, 200
PHASES = ("statistics", "grams", "writing", "reference", "model", "improved")


class Timed(NamedTuple):
    """One answer: the seconds to its first token, and its tokens in a second from there."""

    first: float
    rate: float


def chat(daemon: Daemon, number: int) -> Timed:
    """One answer, to a prompt that no earlier one shares."""
    body = {"model": ASKED, "prompt": f"{number} times upon a time", "options": {"num_predict": TOKENS, "seed": 1}}
    began = time.perf_counter()
    with daemon.opened("POST", "/api/generate", body | {"raw": True}) as response:
        response.readline()
        first = time.perf_counter()
        last = json.loads(response.read().splitlines()[-1])
    return Timed(first - began, (last["eval_count"] - 1) / (time.perf_counter() - first))


@contextlib.contextmanager
def improving(daemon: Daemon) -> Iterator[dict[str, Any]]:
    """An improvement from its beginning, whose last line is in the dictionary."""
    daemon.post("/lm/rollback", {"model": NAME})
    for name in ("statistics", "quality"):
        shutil.rmtree(daemon.home / "cache" / name, ignore_errors=True)
    last: dict[str, Any] = {}

    def follow() -> None:
        with daemon.opened("POST", "/lm/improve", {"model": NAME, "now": True}) as response:
            for line in response:
                last.update(json.loads(line))

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield last
    finally:
        thread.join()
    assert last["status"] == "success", last


def computing(daemon: Daemon) -> bool:
    """Whether a process of the improvement computes now."""
    with contextlib.suppress(psutil.Error):
        return any(
            "meter" in " ".join(each.cmdline()) or "puller" in " ".join(each.cmdline())
            for each in daemon.children()
            if each.status() != psutil.STATUS_STOPPED
        )
    return False


def main(rounds: int) -> None:
    """Measure, and print the ratios."""
    alone, beside = list[Timed](), dict[str, list[Timed]]()
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(DEMO, Path(place) / "original")
        with Daemon(Path(place) / "home", runtime="llama", env={"LM_IMPROVE": "off"}) as daemon:
            for level in ("Q3_K_M", "Q8_0"):
                daemon.pull(f"{Path(place) / 'original'}:{level}")
            chat(daemon, 0)
            with improving(daemon):  # the kernels are compiled once
                pass
            for turn in range(rounds):
                alone += [chat(daemon, 1000 * turn + number) for number in range(len(PHASES))]
                with improving(daemon) as last:
                    for number, phase in enumerate(PHASES):
                        while last.get("phase") != phase or not computing(daemon):
                            if last.get("phase") in ("done", "failed"):
                                break
                            time.sleep(0.005)
                        else:
                            beside.setdefault(phase, []).append(chat(daemon, 1000 * turn + 500 + number))
    print(f"{len(alone)} answers alone, {sum(map(len, beside.values()))} while a model is improved")
    for phase, found in {**beside, "all": [each for rows in beside.values() for each in rows]}.items():
        print(f"{phase:<11} {report(alone, found)}")


def report(alone: list[Timed], beside: list[Timed]) -> str:
    """The ratios of the medians."""
    rate = [statistics.median(each.rate for each in rows) for rows in (alone, beside)]
    first = [statistics.median(each.first for each in rows) for rows in (alone, beside)]
    return (
        f"tokens/s {rate[0]:.0f} → {rate[1]:.0f} (× {rate[1] / rate[0]:.2f}), "
        f"first token {1000 * first[0]:.0f} → {1000 * first[1]:.0f} ms (× {first[1] / first[0]:.2f})"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else ROUNDS)
