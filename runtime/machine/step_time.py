"""How long does one token's step take? The model of time, and the weights that it counts.

A step is bound by reading the active weights, then by the barriers between the operations of a layer, then by attention
over the cache, which works through it once for every query head. The numbers for this machine come from a probe
(`runtime/machine/probe.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from runtime.machine.fit import STEP_SECONDS
from runtime.machine.inspection import ROW_BYTES, Probed

# Types whose kernels cost about the same for each byte share a measurement: the type that is probed, and the others.
FAMILIES = {
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
FAMILY = {name: family for family, others in FAMILIES.items() for name in (family, *others)}
# Bytes per second of any type where nothing at all was probed.
_SOME_RATE = 1e9


@dataclass(frozen=True)
class Reads:
    """The work of a token's step: bytes of weights by type, the number of layers, and the attention.

    For each token in the cache, `heads` query heads (of all layers together) read a key. `row` is the bytes of a
    token's keys in one layer: the distance from one token's key to the next.
    """

    weights: Mapping[str, int]
    layers: int
    heads: int
    row: int = ROW_BYTES


def slowness(probed: Probed) -> dict[str, float]:
    """How many times as long as a byte of the fastest type a byte of each type is read."""
    fastest = max(probed.rates.values())
    return {name: fastest / probed.rates[family] for name, family in FAMILY.items() if family in probed.rates}


def seconds(probed: Probed, reads: Reads, context: int = 0) -> float:
    """How long a step of one token takes with `context` tokens in the cache."""
    attention = reads.heads * probed.head_seconds * math.pow(reads.row / ROW_BYTES, probed.row_power)
    rest = STEP_SECONDS + reads.layers * probed.layer_seconds + context * attention
    return rest + sum(seconds_by_family(probed, reads).values())


def seconds_by_family(probed: Probed, reads: Reads) -> dict[str, float]:
    """How long reading the weights of each family takes; a type of no family is as slow as the slowest."""
    slowest = min(probed.rates.values(), default=_SOME_RATE)
    times: dict[str, float] = {}
    for name, size in reads.weights.items():
        family = FAMILY.get(name, "")
        times[family] = times.get(family, 0.0) + size / probed.rates.get(family, slowest)
    return times
