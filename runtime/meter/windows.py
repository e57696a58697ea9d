"""Windows of text, read by llama.cpp; only the second half of each is scored, as `llama-perplexity` does it.

A window begins with the tokens that the model puts before a text, in the place of its own first ones. The first half
is there so that every scored token has a past.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runtime.errors import BadRequest, LoadFailed
from runtime.llama.context import OK, Context, ContextParams
from runtime.llama.model import LlamaModel
from runtime.meter.kept import Logits
from runtime.meter.passages import Passage

Tokens = NDArray[np.int32]
# Different tokens that a text has at least.
_DISTINCT = 8


class GraphWatcher(Protocol):
    """A native function that llama.cpp calls for the nodes of its graph; it has to be kept as long as the reader."""

    callback: Any
    """A native function, for `ContextParams.watch`."""

    @property
    def data(self) -> int:
        """The function's last argument, an address."""


class WindowReader:
    """A model that reads windows."""

    def __init__(
        self, path: Path, window: int, threads: int, collector: GraphWatcher | None = None, *, writable: bool = False
    ) -> None:
        """Load the file at `path`; where it is `writable`, the weights lie in memory as they do in the file.

        Raises LoadFailed, BadRequest where the model writes no text.
        """
        self.model = LlamaModel(path, gpu_layers=0, mapped=False, repacked=False) if writable else LlamaModel(path)
        if self.model.embeds:
            raise BadRequest("the model does not write text, so it has no probabilities to compare")
        self.window = window
        params = ContextParams(window, 1, window - window // 2, threads, batch=window)
        if collector is not None:  # the last layer computes no more rows than there are outputs
            params = replace(params, outputs=window, watch=collector.callback, watch_data=collector.data)
        self._context = Context(self.model, params)

    def windows(self, passage: Passage, most: int | None = None) -> dict[int, Tokens]:
        """As `windows_of`."""
        return windows_of(self.model, self.window, passage, most)

    def logits(self, tokens: Tokens) -> Iterator[Logits]:
        """The logits of a window's scored positions, float32 `(vocabulary,)` each, valid until the next. LoadFailed."""
        size = len(tokens)
        count = size - size // 2
        self._read(tokens, count)
        for row in range(size - count, size - 1):
            yield self._context.logits(row)

    def read(self, tokens: Tokens) -> None:
        """Read a window as a prompt is read, with logits of its last token. Raises LoadFailed."""
        self._read(tokens, 1)

    def collect(self, tokens: Tokens) -> None:
        """Read a window for the collector alone. Raises LoadFailed."""
        self._read(tokens, len(tokens))

    def _read(self, tokens: Tokens, count: int) -> None:
        """Read a window with outputs for its last `count` tokens."""
        size, context = len(tokens), self._context
        context.cut(0, 0)
        context.put_prompt(0, memoryview(array("i", tokens.tolist())), 0, 0, count)
        if (status := context.decode(size)) != OK:
            raise LoadFailed(
                f"llama.cpp cannot read a window of {size} tokens with the model (status {status})",
                "`lm verify` says whether its file is hurt",
            )


def windows_of(model: LlamaModel, size: int, passage: Passage, most: int | None = None) -> dict[int, Tokens]:
    """Windows of a text by their places in it, int32 `(size,)` each: all, or `most` of them, evenly spread.

    Raises BadRequest where the text is too short for one, or repeats a few tokens.
    """
    vocabulary = model.vocabulary
    before, after = (np.array(each, np.int32) for each in vocabulary.frame)
    text = np.array(vocabulary.tokenize_parts(passage.parts(model)), np.int32)
    ids = np.concatenate([before, text, after])
    found = [ids[at : at + size].copy() for at in range(0, len(ids) - size + 1, size)]
    if not found:
        raise BadRequest(
            f"the text has {len(text):,} token{'s' * (len(text) != 1)}, and one window takes {size:,}",
            "give a longer text; some ten windows are needed before it says much",
        )
    if len(np.unique(text)) < _DISTINCT:
        raise BadRequest("the text is the same few tokens over and over", "give a text that people would read")
    for window in found:
        window[: len(before)] = before
    count = len(found) if most is None else min(most, len(found))
    return {place: found[place] for place in (number * len(found) // count for number in range(count))}
