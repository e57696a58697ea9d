"""How fast does this machine read weights of each type? Measured by small models, run through llama.cpp itself.

It measures whole steps of one token, as an answer takes them, so that the rates contain the effects of threads,
repacking and instructions. The models are headers over a hole in a file: mapped, a hole becomes pages of zeros that the
kernels multiply like any other numbers. They are larger than the processor's caches. Two more numbers are measured
besides the rates: the cost of a layer whatever its size, and the cost of attention for each token in the cache.

A processor's speed varies from second to second, more so where it is shared with other virtual machines: all models
are held at once and visited in turn, round after round, and the median counts. A step during which other programs took
processor time from us does not count. Where too few steps remain, all of them count, each with the time that it would
have taken with all processors. Where half of the steps were disturbed, or the rounds disagree, the result is marked as
not steady.

The model of time that these numbers are for: `runtime/machine/step_time.py`.
"""

from __future__ import annotations

import os
import tempfile
import time
from math import log
from pathlib import Path
from statistics import geometric_mean, median
from typing import NamedTuple

import psutil

from quant.types import QuantType, Tensor
from runtime.llama.context import Context, ContextParams
from runtime.llama.library import library
from runtime.llama.model import LlamaModel
from runtime.machine.fit import LAYER_SECONDS
from runtime.machine.inspection import Probe, Probed, write_skeleton

_HEAD = 64
_VOCABULARY = 256
_FILLED = 1024
_SHARING = 4
# Seconds for all rounds, and the least and most number of them. A round visits each model for some steps.
_SECONDS = 6.0
_ROUNDS = range(3, 24)
_VISIT_SECONDS = 0.05
_STEPS = range(3, 12)
# A step counts when it had this part of the processors' time.
_SHARE = 0.8
# Where fewer steps than this count, all of them do.
_ENOUGH = 5
# The slowest round takes at most N times as long as the fastest, or the machine was busy.
_DIFFERENCE = 1.3
# A model's weights are N times as large as the last-level cache, within bounds.
_CACHES = 4
_LEAST_BYTES, _MOST_BYTES = 32 << 20, 256 << 20
# All models together take no more than this part of the free memory.
_MEMORY_SHARE = 0.5


class ProbeSizes(NamedTuple):
    """A Llama of this shape."""

    layers: int
    width: int
    feed_forward: int

    def bytes(self, type: QuantType) -> int:
        """Bytes of the matrices of all layers."""
        values = self.layers * self.width * (4 * self.width + 3 * self.feed_forward)
        return values * type.block_bytes // type.block


class Case(NamedTuple):
    """A model to run, with `before` tokens in its cache; `sharing` query heads use the same key head."""

    type: QuantType
    sizes: ProbeSizes
    before: int = 0
    sharing: int = 1


class StepTime(NamedTuple):
    """How long a step took, and how many processors it had in the mean."""

    seconds: float
    share: float


_BLOCK = ProbeSizes(1, 2048, 8192)
# Many layers with next to no weights: the cost of a layer.
_THIN = ProbeSizes(32, 64, 64)
# Few layers that do little but attention.
_DEEP = ProbeSizes(4, 1024, 64)


def probe(question: Probe) -> Probed:
    """Measure the types asked for; raises LoadFailed."""
    wanted = _weights_bytes(len(question.types))
    cases = {name: _reading(QuantType.by_name(name), wanted) for name in question.types}
    cases |= {
        "thin": Case(QuantType.Q8_0, _THIN),
        "empty": Case(QuantType.Q8_0, _DEEP),
        "filled": Case(QuantType.Q8_0, _DEEP, _FILLED),
        "shared": Case(QuantType.Q8_0, _DEEP, _FILLED, _SHARING),
    }
    steps, rounds = _measure(cases, question)
    seconds = {name: _typical(each, question) for name, each in steps.items()}
    means = [geometric_mean(each) for each in rounds]
    alone = sum(len(_alone(each, question)) for each in steps.values())
    steady = 2 * alone > sum(map(len, steps.values())) and max(means) < _DIFFERENCE * min(means)
    layer = seconds["thin"] / _THIN.layers
    if not steady:  # a busy machine slows barriers most, and more than it slows a real model's
        layer = min(layer, LAYER_SECONDS)
    rates = {}
    for name in question.types:
        case, step = cases[name], seconds[name]
        # The layers' own cost is counted apart, so it must not be in the rates as well. Half of a step is reading at
        # least.
        rates[name] = case.sizes.bytes(case.type) / max(step / 2, step - case.sizes.layers * layer)
    head, power = _attention(*(seconds[name] for name in ("empty", "filled", "shared")))
    return Probed(rates, layer, head, power, steady)


def _attention(empty: float, filled: float, shared: float) -> tuple[float, float]:
    """Seconds of a query head for each token in the cache, and the power with which they grow (`Probed.row_power`).

    The arguments are seconds of a step with an empty cache, with a filled one, and with one whose heads share keys. The
    keys of the last take 1 / `_SHARING` of the bytes.
    """
    whole, less = (max(full / 100, full - empty) for full in (filled, shared))
    power = log(whole / less) / log(_SHARING)
    return whole / (_DEEP.layers * _DEEP.width // _HEAD * _FILLED), min(1.0, max(0.0, power))


def _weights_bytes(models: int) -> int:
    """Bytes that each of N models must have, so that its weights are read from memory and not from a cache."""
    try:
        cache = os.sysconf("SC_LEVEL3_CACHE_SIZE")
    except (ValueError, OSError):
        cache = 0
    room = int(psutil.virtual_memory().available * _MEMORY_SHARE) // models
    return max(_LEAST_BYTES, min(_MOST_BYTES, _CACHES * cache, room))


def _reading(type: QuantType, wanted: int) -> Case:
    return Case(type, _BLOCK._replace(layers=-(-wanted // _BLOCK.bytes(type))))


def _measure(cases: dict[str, Case], question: Probe) -> tuple[dict[str, list[StepTime]], list[list[float]]]:
    """The steps of every case, and by round the median seconds of each."""
    steps: dict[str, list[StepTime]] = {name: [] for name in cases}
    rounds: list[list[float]] = []
    with tempfile.TemporaryDirectory(prefix="lm-probe-") as folder:
        running = {name: _Running(Path(folder) / name, case, question) for name, case in cases.items()}
        begun = time.perf_counter()
        while len(rounds) < _ROUNDS.start or (len(rounds) < _ROUNDS.stop and time.perf_counter() < begun + _SECONDS):
            visits = {name: each.visit() for name, each in running.items()}
            rounds.append([median(step.seconds for step in visit) for visit in visits.values()])
            for name, visit in visits.items():
                steps[name] += visit
    return steps, rounds


def _alone(steps: list[StepTime], question: Probe) -> list[float]:
    """Seconds of the steps during which no other program used the processors."""
    return [step.seconds for step in steps if question.card or step.share >= _SHARE * question.threads]


def _typical(steps: list[StepTime], question: Probe) -> float:
    """Seconds of a step on an idle machine."""
    alone = _alone(steps, question)
    if len(alone) >= _ENOUGH:
        return median(alone)
    with_all = median(step.seconds * min(1.0, step.share / question.threads) for step in steps)
    return min(with_all, *(step.seconds for step in steps))


class _Running:
    """A case's model, loaded, with its cache filled."""

    def __init__(self, path: Path, case: Case, question: Probe) -> None:
        write_skeleton(path, _metadata(case), _tensors(case))
        self._model = LlamaModel(path, gpu_layers=-1 if question.card else 0)
        room = case.before + _ROUNDS.stop * _STEPS.stop
        self._context = Context(self._model, ContextParams(room, 1, 1, question.threads))
        self._position = 0
        while self._position < case.before:
            size = min(self._context.batch_size, case.before - self._position)
            self._context.put_prompt(0, memoryview(bytes(4 * size)).cast("i"), self._position, 0, 1)
            self._context.decode(size)
            self._position += size

    def visit(self) -> list[StepTime]:
        """Some steps of one token."""
        steps: list[StepTime] = []
        begun = time.perf_counter()
        while len(steps) < _STEPS.start or (len(steps) < _STEPS.stop and time.perf_counter() < begun + _VISIT_SECONDS):
            self._context.put_token(0, 0, self._position, 0)
            start, used = time.perf_counter(), time.process_time()
            self._context.decode(1)
            library().llama_synchronize(self._context.handle)
            seconds = time.perf_counter() - start
            steps.append(StepTime(seconds, (time.process_time() - used) / seconds))
            self._position += 1
        return steps[1:]  # the first one finds cold caches


def _metadata(case: Case) -> dict[str, object]:
    sizes, heads = case.sizes, case.sizes.width // _HEAD
    return {
        "general.architecture": "llama",
        "llama.vocab_size": _VOCABULARY,
        "llama.context_length": 1 << 17,
        "llama.embedding_length": sizes.width,
        "llama.block_count": sizes.layers,
        "llama.feed_forward_length": sizes.feed_forward,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": heads // case.sharing,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
    }


def _tensors(case: Case) -> list[Tensor]:
    """The tensors of a Llama."""
    type, (layers, width, wide) = case.type, case.sizes
    square = {f"attn_{name}": (width, width) for name in ("q", "output")}
    square |= {f"attn_{name}": (width, width // case.sharing) for name in ("k", "v")}
    matrices = {**square, "ffn_gate": (width, wide), "ffn_up": (width, wide), "ffn_down": (wide, width)}
    tensors = [
        Tensor("token_embd.weight", (width, _VOCABULARY), QuantType.F16),
        Tensor("output_norm.weight", (width,), QuantType.F32),
    ]
    for layer in range(layers):
        at = f"blk.{layer}."
        tensors += [Tensor(f"{at}{name}.weight", shape, type) for name, shape in matrices.items()]
        tensors += [Tensor(f"{at}{name}.weight", (width,), QuantType.F32) for name in ("attn_norm", "ffn_norm")]
    return tensors
