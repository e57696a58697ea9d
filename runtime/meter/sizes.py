"""Sizes of windows, and the memory that reading them takes; imports no numbers, for the daemon asks too."""

from __future__ import annotations

from runtime.errors import BadRequest
from runtime.machine.fit import ModelSize, memory
from runtime.messages import CacheConfig

WINDOW, WINDOWS = 512, 40
# A window of fewer tokens has hardly a past.
_SHORTEST = 32
_F32 = 4
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


def reading_bytes(size: ModelSize, weights: int, window: int) -> int:
    """Bytes of memory of a process that reads windows with a model of `weights` bytes of weights."""
    logits = 2 * (scored(window) + 1) * size.vocabulary * _F32  # in the graph and in the output
    return memory(size, weights, CacheConfig(window, 1)).total + logits + _RECORD
