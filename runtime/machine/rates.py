"""What the probe of this machine's speed found, kept in the cache folder, and the speed of an answer that follows.

A file for each processor, build of llama.cpp and number of threads. A probe takes some seconds, so only who needs to
know asks for one: a small model is fast enough at any level. One that was taken while something else used the
processors is taken again when it is next needed and some minutes old. Real answers correct it, family by family.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from runtime.machine.fit import STEP_SECONDS
from runtime.machine.hardware import measure_bandwidth
from runtime.machine.inspection import PROBE_SECONDS, ROW_BYTES, Probe, Probed, ask

# Types whose kernels cost about the same for each byte share a measurement.
_FAMILIES = {
    "F16": ("F32", "BF16"),
    "Q8_0": (),
    "Q6_K": (),
    "Q5_K": (),
    "Q4_K": (),
    "Q3_K": (),
    "Q2_K": (),
    "Q4_0": ("Q4_1", "IQ4_NL", "MXFP4"),
    "Q5_0": ("Q5_1",),
    "IQ4_XS": (),
    "IQ3_S": ("IQ3_XXS",),
    "IQ2_XS": ("IQ2_XXS", "IQ2_S", "IQ1_S", "IQ1_M", "TQ1_0", "TQ2_0", "Q2_0", "Q1_0"),
}
UNSTEADY_SECONDS = 600.0
# How far an answer moves a correction towards what it took, and how far corrections go.
_PATIENCE = 0.25
_FURTHEST = 4.0
_SHARED = {name: probed for probed, names in _FAMILIES.items() for name in (probed, *names)}


@dataclass(frozen=True)
class Reads:
    """What a token's step works through: bytes of weights by type, layers, and for each token before it the query heads
    of all layers, which step over `row` bytes of keys from token to token."""

    weights: Mapping[str, int]
    layers: int
    heads: int
    row: int = ROW_BYTES


def seconds(probed: Probed, reads: Reads, context: int = 0) -> float:
    """How long a step of one token takes with `context` tokens in the cache."""
    attention = reads.heads * probed.head_seconds * math.pow(reads.row / ROW_BYTES, probed.row_power)
    rest = STEP_SECONDS + reads.layers * probed.layer_seconds + context * attention
    return rest + sum(_by_family(probed, reads).values())


def _by_family(probed: Probed, reads: Reads) -> dict[str, float]:
    """How long reading the weights of each family takes; a type of none is taken for the slowest."""
    slowest = min(probed.rates.values(), default=1e9)
    taken: dict[str, float] = {}
    for name, size in reads.weights.items():
        family = _SHARED.get(name, "")
        taken[family] = taken.get(family, 0.0) + size / probed.rates.get(family, slowest)
    return taken


def load(folder: Path, threads: int, card: str = "") -> Probed | None:
    """The rates of this machine with so many threads, corrected by answers, or a card's; None where never measured."""
    probed = _probed(folder, threads, card)
    if probed is None:
        return None
    known = {} if card else _learned(folder, threads)
    return _with_rates(probed, {name: rate / known.get(name, 1.0) for name, rate in probed.rates.items()})


def _with_rates(probed: Probed, rates: dict[str, float]) -> Probed:
    return msgspec.structs.replace(probed, rates=rates)


def _probed(folder: Path, threads: int, card: str = "") -> Probed | None:
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        probed = msgspec.json.decode(_file(folder, threads, card=card).read_bytes(), type=Probed)
        if probed.head_seconds > 0 and all(rate > 0 for rate in probed.rates.values()):
            return probed
    return None


def stale(folder: Path, threads: int, card: str = "") -> bool:
    """Whether the rates were never measured, or on a busy machine and that some time ago."""
    probed = _probed(folder, threads, card)
    if probed is None or probed.steady:
        return probed is None
    try:
        return time.time() - _file(folder, threads, card=card).stat().st_mtime > UNSTEADY_SECONDS
    except OSError:
        return True


def measure(folder: Path, threads: int, card: str = "") -> Probed | None:
    """Probe now and keep the result, which forgets all corrections; None where llama.cpp cannot be asked."""
    probed = ask(Probe(list(_FAMILIES), threads, bool(card)), PROBE_SECONDS)
    if not isinstance(probed, Probed):
        return None
    _keep(_file(folder, threads, card=card), msgspec.json.encode(probed))
    if not card:
        _file(folder, threads, "learned").unlink(missing_ok=True)
    return probed


def learn(folder: Path, threads: int, reads: Reads, context: int, measured: float) -> float | None:
    """Correct the rates by a step of a real answer, which took `measured` seconds in the mean.

    The families that it read are corrected by their part in it. What was predicted, None where there is no probe.
    """
    probed = load(folder, threads)
    if probed is None:
        return None
    predicted = seconds(probed, reads, context)
    known, ratio = _learned(folder, threads), measured / predicted
    for family, taken in _by_family(probed, reads).items():
        factor = known.get(family, 1.0) * ratio ** (_PATIENCE * taken / predicted)
        known[family] = min(_FURTHEST, max(1 / _FURTHEST, factor))
    _keep(_file(folder, threads, "learned"), json.dumps(known).encode())
    return predicted


def _learned(folder: Path, threads: int) -> dict[str, float]:
    """By how much longer than in the probe families take in answers."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        known = msgspec.json.decode(_file(folder, threads, "learned").read_bytes(), type=dict[str, float])
        return {name: factor for name, factor in known.items() if 1 / _FURTHEST <= factor <= _FURTHEST}
    return {}


def bandwidth(folder: Path, threads: int) -> float:
    """Bytes per second that so many threads read from memory together, measured when first asked for."""
    path = _file(folder, threads, "bandwidth")
    with contextlib.suppress(OSError, ValueError, TypeError):
        known = float(json.loads(path.read_bytes()))
        if 1e8 < known < 1e14:
            return known
    measured = measure_bandwidth(threads)
    _keep(path, json.dumps(round(measured)).encode())
    return measured


def _keep(path: Path, data: bytes) -> None:
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        aside.write_bytes(data)
        aside.replace(path)


def _file(folder: Path, threads: int, what: str = "speed", card: str = "") -> Path:
    key = f"{processor()} {importlib.metadata.version('llama-cpp-python')} {threads}{card}"
    return folder / f"{what}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The name of the processor."""
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
