"""What the probe of this machine's speed found, kept in the cache folder, and the speed of an answer that follows.

A file for each processor, build of llama.cpp and number of threads. A probe takes some seconds, so only who needs to
know asks for one: a small model is fast enough at any level.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from runtime.hardware import measure_bandwidth
from runtime.measure import PROBE_SECONDS, Probe, Probed, ask

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
_SHARED = {name: probed for probed, names in _FAMILIES.items() for name in (probed, *names)}


@dataclass(frozen=True)
class Reads:
    """What a token's step works through: bytes of weights by type, layers, and attention's values for each token before
    it.

    A value is one number of a key or value that one query head works through.
    """

    weights: Mapping[str, int]
    layers: int
    attention: int


def seconds(probed: Probed, reads: Reads, context: int = 0) -> float:
    """How long a step of one token takes with `context` tokens in the cache."""
    slowest = min(probed.rates.values(), default=1e9)
    weights = sum(size / probed.rates.get(_SHARED.get(name, ""), slowest) for name, size in reads.weights.items())
    return weights + reads.layers * probed.layer_seconds + context * reads.attention / probed.attention_rate


def load(folder: Path, threads: int) -> Probed | None:
    """The rates of this machine with so many threads, if they were ever measured."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        probed = msgspec.json.decode(_file(folder, threads).read_bytes(), type=Probed)
        if probed.attention_rate > 0 and all(rate > 0 for rate in probed.rates.values()):
            return probed
    return None


def measure(folder: Path, threads: int) -> Probed | None:
    """Probe now and keep the result; None where llama.cpp cannot be asked."""
    probed = ask(Probe(list(_FAMILIES), threads), PROBE_SECONDS)
    if not isinstance(probed, Probed):
        return None
    _keep(_file(folder, threads), msgspec.json.encode(probed))
    return probed


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


def _file(folder: Path, threads: int, what: str = "speed") -> Path:
    key = f"{processor()} {importlib.metadata.version('llama-cpp-python')} {threads}"
    return folder / f"{what}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The name of the processor."""
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
