"""The companions of packed weights, such as scales: fetched when their weights come, compared when the pass meets them.

Safetensors files lie sorted by type, so the scales of all weights of a file may come behind all its weights. They are
small: they are read out of order, some neighbours together, and kept until the pass reaches them. The pass hashes
every byte, so the fetched bytes are compared with its own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import numpy as np

from quant.errors import MalformedFile
from quant.plan import ModelPlan, Part, Read, TensorPlan

Peek = Callable[[str, int, int], bytes]
"""Reads bytes of a file of the source: (shard, offset, size)."""

_RUN = 8 << 20  # bytes that are fetched together
_GAP = 64 << 10  # bytes between two companions that are fetched along rather than skipped


class CompanionReader:
    """Fetches the companions of packed weights by `peek`."""

    def __init__(self, plan: ModelPlan, peek: Peek | None) -> None:
        """`peek` is None for a plan without packed weights."""
        self._peek = peek
        self._fetched: dict[Part, bytes] = {}
        self._passed: set[Part] = set()
        parts = {part for tensor in plan.tensors for companions in tensor.companions for part in companions}
        self._parts = sorted(parts, key=_place)

    def of(self, tensor: TensorPlan, read: Read) -> tuple[np.ndarray, ...]:
        """The companions of a part of packed weights, flat; none for other weights."""
        if tensor.packing is None:
            return ()
        places = enumerate(tensor.companions[read.number], 1)
        return tuple(np.frombuffer(self._fetch(part), tensor.packing.dtypes[place]) for place, part in places)

    def compare(self, tensor: TensorPlan, part: Part, rows: np.ndarray) -> None:
        """Raises MalformedFile where a companion is not what was fetched before."""
        self._passed.add(part)
        fetched = self._fetched.pop(part, None)
        if fetched is not None and fetched != rows.tobytes():
            reason = f"`{part.shard}` changed while it was read: the scales of `{tensor.source}` are others than before"
            raise MalformedFile(reason, "download the model again")

    def _fetch(self, part: Part) -> bytes:
        """The bytes of a companion; its neighbours in the file are fetched along, for the weights that follow."""
        if part not in self._fetched:
            run = list(self._run(part))
            size = run[-1].offset + run[-1].size - part.offset
            assert self._peek, "a plan with packed weights needs `peek`"
            data = self._peek(part.shard, part.offset, size)
            for near in run:
                begin = near.offset - part.offset
                self._fetched[near] = data[begin : begin + near.size]
        data = self._fetched[part]
        if part in self._passed:
            del self._fetched[part]
        return data

    def _run(self, part: Part) -> list[Part]:
        run = [part]
        for near in self._parts[bisect_left(self._parts, _place(part), key=_place) + 1 :]:
            end = run[-1].offset + run[-1].size
            far = near.shard != part.shard or near.offset > end + _GAP
            if far or near in self._passed or near.offset + near.size - part.offset > _RUN:
                break
            run.append(near)
        return run


def _place(part: Part) -> tuple[str, int]:
    return part.shard, part.offset
