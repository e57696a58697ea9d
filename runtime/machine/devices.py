"""Which layers of a model go to graphics cards? And how many bytes does each card then hold?

llama.cpp puts the last layers on cards, and counts the output matrix as one more layer behind them. It shares them out
in proportion to the free memory of each card (`load_tensors` in llama-model.cpp). The token embedding stays in main
memory. A layer's part of the cache goes where its weights are, and every card has a graph's buffer of its own.

We take the largest number of layers with which no card holds more than it has free, less the bytes for its driver. The
other layers stay in main memory. Cards that use main memory (Apple, integrated ones) count there, once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from quant.types import Tensor
from runtime.machine.fit import Need, OnCard
from runtime.machine.hardware import Gpu

# Bytes of a card for the driver and its context, beside our buffers.
DRIVER_BYTES = 512 << 20


@dataclass(frozen=True)
class Layers:
    """Bytes of the weights that can go to a card: by layer, and of the output."""

    blocks: tuple[int, ...]
    output: int
    tied: bool = False
    """Whether the output is a second copy of the embedding."""

    @classmethod
    def of(cls, tensors: Iterable[Tensor], tied: bool) -> Layers:
        """From a model's tensors; a `tied` embedding counts as the output, and stays in main memory as well."""
        blocks: dict[int, int] = {}
        output = 0
        for tensor in tensors:
            if tensor.layer is not None:
                blocks[tensor.layer] = blocks.get(tensor.layer, 0) + tensor.nbytes
            elif tensor.name.startswith("output") or (tied and tensor.role == "token_embd"):
                output += tensor.nbytes
        return cls(tuple(blocks[layer] for layer in sorted(blocks)), output, tied)


def place(need: Need, layers: Layers, cards: Sequence[Gpu]) -> Need:
    """The same need with as many layers on `cards` as they hold; unchanged where there is none, or no room for one."""
    own = [card for card in cards if not card.shared] or list(cards)
    for count in range(len(layers.blocks) + 1, 0, -1) if own else ():
        shares = _shares(need, layers, own, count)
        if all(each.total <= max(0, card.memory_free - DRIVER_BYTES) for each, card in zip(shares, own, strict=True)):
            return replace(need, cards=tuple(each for each in shares if each.total), card_layers=count)
    return need


def _shares(need: Need, layers: Layers, cards: Sequence[Gpu], count: int) -> list[OnCard]:
    """Each card's share of the last `count` layers."""
    free = [card.memory_free for card in cards]
    ends = [end / max(1, sum(free)) for end in accumulate(free)]
    total = len(layers.blocks)
    cache = need.cache // max(1, total)
    weights, caches = [0] * len(cards), [0] * len(cards)
    first = total + 1 - count
    for index in range(first, total + 1):
        card = min(bisect_right(ends, (index - first) / count), len(cards) - 1)
        weights[card] += layers.blocks[index] if index < total else layers.output
        caches[card] += cache if index < total else 0
    last = next(at for at in reversed(range(len(cards))) if weights[at])
    return [
        OnCard(
            card.name,
            weights[at],
            caches[at],
            need.graph if weights[at] else 0,
            card.memory_free,
            card.shared,
            layers.output if layers.tied and at == last else 0,
        )
        for at, card in enumerate(cards)
    ]
