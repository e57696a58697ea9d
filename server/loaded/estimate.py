"""How much memory will a model take? Predictions, corrected by earlier loads on this machine.

A prediction is llama.cpp's own answer for the model's header, else it comes from formulas (`runtime/machine/fit.py`).
Some workers turn out to hold more than was predicted. The excess is remembered in the cache folder and added to later
predictions of the same model: half of it at once. It is let go of slowly, because a worker that has not filled its
context yet holds less than it will. Answers correct the speeds of the probe (`runtime/machine/rates.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from dataclasses import replace
from pathlib import Path

import psutil

from quant.levels.recipes import LADDER, weights_bytes
from quant.plan import ModelPlan
from runtime.machine.choosing import SMALL_BYTES, reads
from runtime.machine.devices import Layers, place
from runtime.machine.fit import Need, memory, repacked
from runtime.machine.hardware import Gpu
from runtime.machine.inspection import NO_DRAFTS, DraftMeans, Reserved, ask_reserved
from runtime.machine.rates import Rates
from runtime.messages import CacheConfig
from runtime.small_files import replace_file
from runtime.units import size_text
from server.library import Facts

log = logging.getLogger("lm.memory")
# Bytes that predictions are raised by at most.
MOST_EXTRA = 1 << 30
# A prediction that was too high lowers the next ones by 1 / N of the difference.
_FORGET = 16
# The number of models that are remembered: the last ones that answered.
_MODELS = 64


class Estimator:
    """Predicts the memory of models, and learns from workers. With `ask` llama.cpp is asked, in a child process."""

    def __init__(self, folder: Path, *, ask: bool) -> None:
        self._folder = folder
        self._path = folder / "memory.json"
        self._ask = ask
        self._reserved: dict[tuple[str, CacheConfig, DraftMeans], Reserved | None] = {}
        self.extra: dict[str, int] = {}  # bytes that are added to predictions, by the digest of the model's blob
        try:
            kept = json.loads(self._path.read_bytes())["models"]
            self.extra = {str(digest): min(MOST_EXTRA, max(0, int(extra))) for digest, extra in kept.items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s cannot be read, so predictions start to learn anew: %s", self._path, error)

    async def need(
        self,
        digest: str,
        facts: Facts,
        weights: int,
        cache_config: CacheConfig,
        cards: tuple[Gpu, ...] = (),
        drafts: DraftMeans = NO_DRAFTS,
    ) -> Need:
        """The memory for the model of this blob, whose file has `weights` bytes, in main memory and on `cards`."""
        key = (digest, cache_config, drafts)
        plan, tensors = facts.plan, facts.plan.as_stored()
        if self._ask and key not in self._reserved:
            self._reserved[key] = await asyncio.to_thread(ask_reserved, plan.metadata, tensors, cache_config, drafts)
        reserved = self._reserved.get(key)
        need = memory(facts.model_size.with_reserved(reserved), weights, cache_config, drafts)
        copied = repacked(tensors, reserved.repacks) if reserved else 0
        need = replace(need, compute=need.compute + self.extra.get(digest, 0), repacked=copied)
        return place(need, Layers.of(tensors, plan.tied), cards)

    def learn(self, digest: str, name: str, need: Need, measured: int) -> None:
        """Compare a prediction with the anonymous bytes that a worker holds (`measured`), once it has answered.

        `digest` names the blob of the worker's model; `name` is the model's name for the log.
        """
        error, before = measured - need.anonymous, self.extra.pop(digest, 0)
        extra = min(MOST_EXTRA, max(0, before + (error // 2 if error > 0 else error // _FORGET)))
        if extra:
            self.extra[digest] = extra
        if extra == before:
            return
        while len(self.extra) > _MODELS:
            del self.extra[next(iter(self.extra))]
        log.info(
            "%s: %s of its own predicted, %s measured (%+.1f %%)",
            name,
            size_text(need.anonymous),
            size_text(measured),
            100 * error / max(1, need.anonymous),
        )
        try:
            replace_file(self._path, json.dumps({"models": self.extra}).encode())
        except OSError as error:
            log.warning("%s cannot be written, so the next daemon learns anew: %s", self._path, error)

    def learn_speed(self, name: str, facts: Facts, threads: int, context: int, seconds: float) -> None:
        """Correct the speeds of the probe by an answer: `seconds` per token, with `context` tokens before it.

        Blocks for a moment. Does nothing for a small model, which says little about how fast weights are read.
        """
        read = reads(facts.plan, facts.plan.as_stored(), facts.model_size)
        if sum(read.weights.values()) < SMALL_BYTES:
            return
        predicted = Rates(self._folder, threads).learn(read, context, seconds)
        if predicted:
            log.info("%s: %.1f tokens/s predicted, %.1f measured", name, 1 / predicted, 1 / seconds)


def smaller(plan: ModelPlan, need: Need, room: int) -> str:
    """The best level of this model that would fit into `room` bytes, all else being equal; "" where none would."""
    rest = need.total - need.weights
    levels = ((level, weights_bytes(plan, level)) for level in LADDER)
    return next((level for level, weights in levels if weights + rest <= room and weights < need.weights), "")


def anonymous_bytes(pid: int) -> int | None:
    """Bytes of its own that a process holds, None where that cannot be found out.

    Files that it has mapped do not count where the system tells them apart (Linux).
    """
    found = resident_bytes(pid)
    return found[0] if found else None


def resident_bytes(pid: int) -> tuple[int, int] | None:
    """Bytes in memory of a process: its own, and of files that it has mapped. None where that cannot be found out.

    Where the system does not tell them apart (elsewhere than on Linux), all count as its own.
    """
    with contextlib.suppress(OSError, KeyError, ValueError):
        rows = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        sizes = {row[0]: int(row[1]) << 10 for row in rows if row and row[0] in ("RssAnon:", "RssFile:")}
        return sizes["RssAnon:"], sizes["RssFile:"]
    with contextlib.suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss), 0
    return None
