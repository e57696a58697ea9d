"""What is known about a model before a weight moves: which tensors the GGUF will hold, and where each comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np

# What is left out of models that also guess at the token after the next.
AHEAD = "guesses at further tokens"


class Files(Protocol):
    """A model's source as planning sees it: named files that can be read by range; `title` names it to people."""

    @property
    def title(self) -> str:
        """The folder's path, or the name of the repository."""

    def names(self) -> list[str]:
        """Paths of the files, relative to the model's folder."""

    def size(self, name: str) -> int:
        """Length in bytes."""

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`."""


class Transform(Protocol):
    """A change of a tensor's values that can be made in slabs of whole `rows`."""

    @property
    def rows(self) -> int:
        """Rows that must stay together; 0 where all of a part must."""

    def apply(self, x: np.ndarray) -> np.ndarray:
        """The changed slab; `x` is (n * rows, columns) of any dtype, (1, values) of a part that stays together."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of an output tensor that lie together in the source: `size` bytes at `offset` of file `shard`."""

    shard: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One output tensor.

    `shape` has the rows first, as the source has it (GGUF's order is the reverse). The values come from `size` bytes at
    `offset` of file `shard`, of safetensors type `dtype`; a tensor that we work out ourselves has them in `values`
    (float32, little-endian) and no shard. A stack of experts is put together from `parts`, its rows in that order;
    `size` is that of all, the place that of one of them. Two tensors may be made of the same parts, each of what its
    transform takes. Weights that are stored small (`scaled.py`) have for each part its `scales`, and `stored` is the
    number of values in a row of theirs; `size` counts what belongs to this tensor of both.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    source: str = ""
    shard: str = ""
    offset: int = 0
    size: int = 0
    transform: Transform | None = None
    values: bytes = b""
    parts: tuple[Part, ...] = ()
    scales: tuple[Part, ...] = ()
    stored: int = 0

    @property
    def elements(self) -> int:
        """Number of values."""
        return prod(self.shape)

    @property
    def columns(self) -> int:
        """Values of a row, the unit of quantization."""
        return self.shape[-1]


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """A model as it will be written.

    `metadata` are the GGUF entries that describe it (sizes, tokenizer, chat template, general facts), `tensors` stand
    in the order in which the source completes them, `shards` are the source's files in order. `stops` are all token
    ids that end an answer, `defaults` the sampling settings that the model's makers recommend, `capabilities` what
    Ollama's API calls them (`completion`, `tools`, `thinking`, `insert`, `embedding`). A source that is quantized has
    its `level`, and can only be copied; `kinds` says as what its entries are written. `left_out` are the parts of a
    larger model, in words, that are not converted, and their bytes.
    """

    architecture: str
    metadata: Mapping[str, Any]
    tensors: tuple[TensorPlan, ...]
    shards: tuple[str, ...]
    stops: tuple[int, ...] = ()
    defaults: Mapping[str, float] = field(default_factory=dict)
    capabilities: tuple[str, ...] = ("completion",)
    level: str = ""
    kinds: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Number of trained values."""
        return sum(tensor.elements for tensor in self.tensors if tensor.shard)

    @property
    def source_bytes(self) -> int:
        """Bytes of weights that will be read from the source."""
        return sum(tensor.size for tensor in self.tensors)

    def reads(self, first: int = 0) -> Iterator[Read]:
        """What is taken from the source for the tensors from number `first` on, in the order in which it comes."""
        order = {shard: number for number, shard in enumerate(self.shards)}
        found = []
        for index, tensor in enumerate(self.tensors[first:], first):
            parts = tensor.parts or (Part(tensor.shard, tensor.offset, tensor.size),)
            found += [Read(index, number, part) for number, part in enumerate(parts) if tensor.shard]
            found += [Read(index, number, part, scales=True) for number, part in enumerate(tensor.scales)]
        return iter(sorted(found, key=lambda read: (order[read.part.shard], read.part.offset)))


class Read(NamedTuple):
    """Part number `number` of tensor number `tensor` of a plan, or the `scales` of that part."""

    tensor: int
    number: int
    part: Part
    scales: bool = False


Progress = Callable[[int, int], None]
