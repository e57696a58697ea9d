"""Sizes of windows, and the memory that reading them takes; imports no numbers, for the daemon asks too."""

from __future__ import annotations

from quant.plan import ModelPlan
from runtime.errors import BadRequest
from runtime.machine.fit import ModelSize, memory
from runtime.messages import CacheConfig

WINDOW, WINDOWS = 512, 40
# Bytes of Gram matrices that are collected at a time.
GRAMS = 512 << 20
# A window of fewer tokens has hardly a past.
_SHORTEST = 32
_F32 = 4
# A sum in float32 and in float64, as it is added up, written and read back; and a matrix's counts of experts.
_SUM, _COUNTS = 3 * (4 + 8), 4096 * 8
# Matrices of a factor's size while it is made, and the copies of values that are quantized at a time.
_FACTOR, _TRIED = 5, 128 << 20
# A window's record at its largest, twice: as it is made and as it is written.
_RECORD = 64 << 20


def scored(window: int) -> int:
    """How many positions of a window of N tokens are scored: one before each token of the second half but its first."""
    return window - 1 - window // 2


def window_of(trained: int) -> int:
    """The tokens of a window for a model that was trained for a context of `trained` tokens. Raises BadRequest."""
    if trained < _SHORTEST:
        raise BadRequest(f"the model reads {trained} tokens at once, too few to measure", "")
    return min(WINDOW, trained)


def collecting_bytes(plan: ModelPlan, vocabulary: int, window: int) -> int:
    """Bytes of memory that statistics of a model's inputs take beside reading: sums, counts, and logits of all rows."""
    matrices = [each for each in plan.tensors if each.layer is not None and len(each.shape) in (2, 3)]
    sums = sum(each.columns * (each.shape[0] if len(each.shape) > 2 else 1) for each in matrices)
    return _SUM * sums + _COUNTS * len(matrices) + 2 * (window // 2) * vocabulary * _F32


def narrowing_bytes(plan: ModelPlan, window: int) -> int:
    """Bytes of memory for choosing channels of feed-forwards: copies of a Gram matrix, of its inverse, of factors."""
    widest = max((each.columns for each in plan.tensors if each.role == "ffn_down" and len(each.shape) == 2), default=0)
    return 8 * _F32 * widest**2 + gram_bytes(plan, window)


def gram_bytes(plan: ModelPlan, window: int) -> int:
    """Bytes of memory for Gram matrices that are collected at a time: as many as fit a bound, at least the largest."""
    widest = max((each.columns for each in plan.tensors if each.layer is not None and len(each.shape) == 2), default=0)
    return max(GRAMS, 2 * _F32 * widest**2) + 16 * window * widest * _F32


def harms_file(*, fed: bool) -> str:
    """The name of the file with measured harms, where errors are fed back by Gram matrices, and where they are not."""
    return f"harms-{'best' if fed else 'importance'}.json"


def harms_bytes(plan: ModelPlan) -> int:
    """Bytes of memory for errors of types: the factor of the widest matrix, and the values that are tried at once."""
    widest = max((each.columns for each in plan.tensors if each.layer is not None and len(each.shape) == 2), default=0)
    return _FACTOR * _F32 * widest**2 + _TRIED


def reading_bytes(size: ModelSize, weights: int, window: int) -> int:
    """Bytes of memory of a process that reads windows with a model of `weights` bytes of weights."""
    logits = 2 * (scored(window) + 1) * size.vocabulary * _F32  # in the graph and in the output
    return memory(size, weights, CacheConfig(window, 1)).total + logits + _RECORD
