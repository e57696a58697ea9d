"""The distribution of tokens that are drawn first and masked where they must be, against NumPy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime.llama.context import Context, ContextParams
from runtime.llama.masking import MaskedSampler
from runtime.llama.model import LlamaModel
from runtime.llama.sampling import Sampler
from runtime.options import Sampling

DRAWS = 10_000


class Fixed:
    """A grammar that allows the same tokens always."""

    def __init__(self, allowed: Any) -> None:
        self._allowed = allowed
        self.masks = 0

    def take(self, token: int) -> bool:
        return bool(self._allowed[token])

    def allowed(self) -> Any:
        self.masks += 1
        return self._allowed


@pytest.fixture(scope="module")
def computed(demo: Path) -> Iterator[tuple[LlamaModel, Context]]:
    """A model and a context with the logits of one row."""
    model = LlamaModel(demo)
    context = Context(model, ContextParams(256, 1, 1, 1))
    context.put_prompt(0, memoryview(model.vocabulary.tokenize("Once upon a", special=False, add=True)), 0, 0, 1)
    rows = len(model.vocabulary.tokenize("Once upon a", special=False, add=True))
    assert context.decode(rows) == 0
    context.last = rows - 1  # type: ignore[attr-defined]
    yield model, context
    context.free()


def expected(logits: Any, sampling: Sampling, allowed: Any) -> Any:
    """The chain (top-k, top-p, temperature) in NumPy, without the tokens that are not allowed, renormalized."""
    order = np.argsort(-logits, kind="stable")
    if sampling.top_k > 0:
        order = order[: sampling.top_k]
    shares = np.exp(logits[order].astype(np.float64) - logits.max())
    shares /= shares.sum()
    if sampling.top_p < 1:
        order = order[: int(np.searchsorted(shares.cumsum(), sampling.top_p)) + 1]
    result = np.zeros(len(logits))
    result[order] = np.exp((logits[order].astype(np.float64) - logits.max()) / sampling.temperature)
    result[~allowed] = 0
    return result / result.sum()


def too_far(counts: Any, shares: Any) -> float:
    """The standard score of Pearson's chi-square (Wilson and Hilferty's approximation); 3.09 has a chance of 0.001."""
    wanted = shares * counts.sum()
    rare = wanted < 5
    cells = [*zip(counts[~rare], wanted[~rare], strict=True), (counts[rare].sum(), wanted[rare].sum())]
    square = sum((count - want) ** 2 / want for count, want in cells if want > 0)
    free = max(1, len([1 for _, want in cells if want > 0]) - 1)
    return float(((square / free) ** (1 / 3) - (1 - 2 / (9 * free))) / math.sqrt(2 / (9 * free)))


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, top_k=0, top_p=1.0, seed=1),
        Sampling(temperature=1.3, top_k=40, top_p=0.9, seed=2),
        Sampling(temperature=0.7, top_k=0, top_p=0.95, seed=3),
        Sampling(temperature=1.0, top_k=30, top_p=1.0, seed=4, presence_penalty=1e-6),
    ],
    ids=["plain", "top-k and top-p", "top-p", "with a memory"],
)
def test_drawing_first_gives_the_masked_distribution(computed: tuple[LlamaModel, Context], sampling: Sampling) -> None:
    model, context = computed
    row: int = context.last  # type: ignore[attr-defined]
    logits = context.logits(row)
    best = np.argsort(-logits, kind="stable")
    allowed = np.ones(len(logits), bool)
    allowed[best[[0, 2, 5, 9]]] = False
    grammar = Fixed(allowed)
    drawing = MaskedSampler(Sampler(model.vocabulary, sampling, 0, 256))
    counts = np.zeros(len(logits))
    for _ in range(DRAWS):
        counts[drawing.draw(context.handle, row, logits, grammar)] += 1
    assert counts[~allowed].sum() == 0
    assert 0 < grammar.masks < DRAWS
    assert too_far(counts, expected(logits, sampling, allowed)) < 3.09


def test_greedy_takes_the_largest_that_is_allowed(computed: tuple[LlamaModel, Context]) -> None:
    model, context = computed
    row: int = context.last  # type: ignore[attr-defined]
    logits = context.logits(row)
    allowed = np.ones(len(logits), bool)
    allowed[np.argsort(-logits)[:300]] = False
    drawing = MaskedSampler(Sampler(model.vocabulary, Sampling(temperature=0), 0, 256))
    assert drawing.draw(context.handle, row, logits, Fixed(allowed)) == np.where(allowed, logits, -np.inf).argmax()


def test_where_nothing_allowed_is_left_the_chain_runs_over_the_allowed(computed: tuple[LlamaModel, Context]) -> None:
    model, context = computed
    row: int = context.last  # type: ignore[attr-defined]
    logits = context.logits(row)
    allowed = np.zeros(len(logits), bool)
    rare = np.argsort(logits)[:50]
    allowed[rare] = True
    drawing = MaskedSampler(Sampler(model.vocabulary, Sampling(top_k=3, seed=1), 0, 256))
    drawn = {drawing.draw(context.handle, row, logits, Fixed(allowed)) for _ in range(200)}
    assert drawn <= set(np.argsort(-np.where(allowed, logits, -np.inf))[:3].tolist())
