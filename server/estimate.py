"""What a model will take in memory, corrected by what loads on this machine have taken.

Predictions are llama.cpp's own word for the model's header, else formulas (`runtime/fit.py`). What a worker turns out
to hold beyond its prediction is remembered in the cache folder and added to later ones: half of it at once, and let go
of slowly, because a worker that has not filled its context yet holds less than it will.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import psutil

from quant.plan import ModelPlan, TensorPlan
from quant.recipes import LADDER, sizes
from quant.types import QuantType
from runtime.advise import size
from runtime.fit import Need, memory, repacked
from runtime.measure import Weighed, weigh
from server.library import Facts

log = logging.getLogger("lm.memory")
MOST_EXTRA = 1 << 30
_FORGET = 16


class Estimator:
    """Predicts, and learns. `ask` is whether llama.cpp may be asked, in a child process."""

    def __init__(self, folder: Path, *, ask: bool) -> None:
        self._path = folder / "memory.json"
        self._ask = ask
        self._weighed: dict[tuple[str, int, int, str], Weighed | None] = {}
        self.extra = 0
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            self.extra = min(MOST_EXTRA, max(0, int(json.loads(self._path.read_bytes())["extra"])))

    async def need(self, digest: str, facts: Facts, weights: int, context: int, sequences: int, kv_type: str) -> Need:
        """What the model of this blob and file size takes with a pool of `context` tokens."""
        key = (digest, context, sequences, kv_type)
        tensors = [(name, tuple(shape), QuantType.by_name(kind)) for name, kind, shape in facts.tensors]
        if self._ask and key not in self._weighed:
            self._weighed[key] = await asyncio.to_thread(weigh, facts.metadata, tensors, context, sequences, kv_type)
        weighed = self._weighed.get(key)
        need = memory(facts.shape.with_weighed(weighed), weights, context, sequences, kv_type)
        copied = repacked(tensors, weighed.repacks) if weighed else 0
        return replace(need, compute=need.compute + self.extra, repacked=copied)

    def learn(self, name: str, need: Need, measured: int) -> None:
        """Take in what a worker holds of its own, once it has answered."""
        error = measured - need.anonymous
        log.info(
            "%s: %s of its own predicted, %s measured (%+.1f %%)",
            name,
            size(need.anonymous),
            size(measured),
            100 * error / max(1, need.anonymous),
        )
        extra = min(MOST_EXTRA, max(0, self.extra + (error // 2 if error > 0 else error // _FORGET)))
        if extra == self.extra:
            return
        self.extra = extra
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            aside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
            aside.write_text(json.dumps({"extra": extra}))
            aside.replace(self._path)


def smaller(facts: Facts, need: Need, room: int) -> str:
    """The best level of this model that would fit into `room` bytes, all else being equal; "" where none would."""
    tensors = tuple(TensorPlan(name, tuple(shape[::-1]), kind) for name, kind, shape in facts.tensors)
    plan = ModelPlan(str(facts.metadata.get("general.architecture", "")), facts.metadata, tensors, ())
    rest = need.total - need.weights
    return next(
        (level for level in LADDER if sizes(plan, level) + rest <= room and sizes(plan, level) < need.weights), ""
    )


def held(pid: int) -> int:
    """Bytes of its own that a process holds; files that it has mapped are not counted where the system tells them."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0
