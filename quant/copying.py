"""A finished GGUF file is taken over as it is, to the byte; the same interface as a conversion (`pipeline.py`)."""

from __future__ import annotations

import hashlib
from contextlib import closing

from quant.plan import ModelPlan, Progress
from quant.streams import Mark, Open, Output
from quant.types import QuantType

PIECE = 4 << 20


class Copy:
    """The only file of `plan`, of `size` bytes, whose header was found to be right."""

    def __init__(self, plan: ModelPlan, size: int) -> None:
        self.plan = plan
        self.size = size
        self.types: dict[str, QuantType] = {}

    @property
    def fingerprint(self) -> str:
        """A digest of what the header says."""
        return hashlib.sha256(repr((self.size, self.plan.tensors, self.plan.metadata)).encode()).hexdigest()

    def write(
        self,
        source: Open,
        output: Output,
        *,
        start: Mark | None = None,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Read the file into `output`, from `start` on; raises what the two raise. `threads` are not needed."""
        (shard,) = self.plan.shards
        position = start.offset if start else 0
        with closing(source(shard, position, start.state if start else b"")) as reader:
            if not position:
                output.reached(Mark(0, 0, shard))
            buffer = memoryview(bytearray(PIECE))
            while position < self.size:
                piece = buffer[: min(PIECE, self.size - position)]
                reader.readinto(piece)
                output.write(piece)
                position += len(piece)
                state = reader.state()
                if state is not None:
                    output.reached(Mark(0, 0, shard, position, state))
                if progress:
                    progress(position, self.size)
            reader.finish()
