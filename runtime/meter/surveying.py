"""Surveys of a model: what its parts do while it reads windows of text, so that a cut can choose among them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quant.gguf.header import read_file
from runtime.errors import BadRequest
from runtime.meter.kept import KeptWindow, NotFinite, compare, record
from runtime.meter.passages import Passage
from runtime.meter.windows import WindowReader

if TYPE_CHECKING:  # a callback is compiled as its module is imported, which takes seconds
    from runtime.meter.routed import ExpertScores
    from runtime.meter.skipping import LayerWatcher

Tell = Callable[[int, int], None]
# Layers of least influence that are tried for one that goes. Influence alone picks the wrong one: on SmolLM2-135M its
# first choice costs twice what the best of eight costs.
_TRIED = 8


def survey_experts(
    path: Path, passage: Passage, *, windows: int, window: int, threads: int, tell: Tell
) -> ExpertScores:
    """The scores of the experts of the mixture at `path` on at most `windows` windows of a text.

    `tell` gets how many windows of how many are read. Raises BadRequest (no experts, a text too short, a model that
    writes no text), InputsNotFinite, LoadFailed.
    """
    from runtime.meter.routed import ExpertWatcher

    watcher = ExpertWatcher(read_file(path).tensors, window)
    reader = WindowReader(path, window, threads, watcher)
    texts = list(reader.windows(passage, windows).values())
    for number, tokens in enumerate(texts):
        tell(number, len(texts))
        reader.collect(tokens)
        watcher.settle()
    tell(len(texts), len(texts))
    return watcher.scores()


class LayerTrial(NamedTuple):
    """One more `layer` that goes, the cheapest of the `layers` that were tried: KL divergences in nats on the text."""

    layer: int
    layers: list[int]
    divergences: list[float]


def survey_layers(
    path: Path, passage: Passage, *, count: int, windows: int, window: int, threads: int, tell: Tell
) -> list[LayerTrial]:
    """Choose `count` layers of the model at `path` to go, one after the other, each the one without which the model's
    probabilities change least on at most `windows` windows of a text. The first two and the last one always stay.

    `tell` gets how many passes of how many are done. Raises BadRequest (a text too short, a model that writes no text,
    too few layers), NotFinite, LoadFailed.
    """
    from runtime.meter.skipping import LayerWatcher

    metadata = read_file(path).metadata
    name = metadata["general.architecture"]
    layers, width = metadata[f"{name}.block_count"], metadata[f"{name}.embedding_length"]
    if layers - 3 < count:
        raise BadRequest(
            f"{layers} layers are too few to choose {count} of them", "the first two and the last one stay"
        )
    watcher = LayerWatcher(layers, width, window)
    trials = _LayerTrials(WindowReader(path, window, threads, watcher), watcher, passage, windows)
    passes = 1 + sum(min(_TRIED, layers - 3 - each) for each in range(count))
    dropped: list[LayerTrial] = []
    done = 1
    tell(0, passes)
    changes = trials.begin()
    for _ in range(count):
        gone = [each.layer for each in dropped]
        left = [layer for layer in range(2, layers - 1) if layer not in gone]
        tried: dict[int, tuple[float, NDArray[np.float64]]] = {}
        for layer in sorted(left, key=changes.__getitem__)[:_TRIED]:
            tell(done, passes)
            tried[layer] = trials.without([*gone, layer])
            done += 1
        best = min(tried, key=lambda layer: tried[layer][0])
        changes = tried[best][1]
        dropped.append(LayerTrial(best, list(tried), [divergence for divergence, _ in tried.values()]))
    tell(passes, passes)
    return dropped


class _LayerTrials:
    """A model that reads the same windows again and again, without some of its layers."""

    def __init__(self, reader: WindowReader, watcher: LayerWatcher, passage: Passage, windows: int) -> None:
        self._reader, self._watcher = reader, watcher
        self._windows = list(reader.windows(passage, windows).values())
        self._whole: list[KeptWindow] = []

    def begin(self) -> NDArray[np.float64]:
        """Read with the whole model; how much each layer changes. Raises NotFinite, LoadFailed."""
        self._whole = [record(tokens, self._reader.logits(tokens)) for tokens in self._windows]
        self._watcher.check(len(self._windows))
        return self._watcher.changes

    def without(self, layers: Sequence[int]) -> tuple[float, NDArray[np.float64]]:
        """The mean KL divergence without these layers, infinite where values are not finite, and layers' changes."""
        self._watcher.skip(layers)
        try:
            found = [compare(kept, self._reader.logits(kept.tokens)).divergence.mean() for kept in self._whole]
        except NotFinite:
            return float("inf"), self._watcher.changes
        self._watcher.check(len(self._windows))
        return float(np.mean(found)), self._watcher.changes
