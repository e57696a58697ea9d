"""The plan of a GGUF file, made before a weight is read: its tensors, and the bytes of the source for each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from quant.gguf.header import Header
from quant.types import QuantType, Tensor, layer_of, role_of

if TYPE_CHECKING:
    import numpy as np

# A part of `left_out`: the layers of a model that also predict the tokens after the next one.
NEXT_TOKEN_LAYERS = "guesses at further tokens"
# `general.file_type` of a file whose experts somebody quantized to MXFP4 (`LLAMA_FTYPE_MOSTLY_MXFP4_MOE` of llama.cpp).
MXFP4_MOE = 38


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
    """One output tensor, and the bytes of the source that it is made of.

    `shape` is in the source's order, rows first: (32000, 4096) has 32,000 rows of 4,096; GGUF's order is the reverse.
    `dtype` is the type in the source: a safetensors type, a name of `scaled.STORED`, or a GGML type in a GGUF file.
    The values are `size` bytes at `offset` of file `shard`. A tensor that we compute ourselves has its values in
    `values` (float32, little-endian), and an empty `shard`.

    A stack of experts has one of `parts` for each matrix, in the order of its rows: with 8 experts 8 parts, and `size`
    is their sum. Two tensors may share their parts: a fused gate and up projection is read once, and the `transform` of
    each tensor selects its rows. Their sizes then add up to the bytes of the parts.

    Some weights have their scales in a tensor of their own (MXFP4, FP8: `quant/stream/scaled.py`). For each part,
    `scales` has the scales of that part, and `stored` is the number of values in a row of the source. `size` includes
    the scales.

    `published` marks a tensor of a GGUF file that has the type in which its makers published the weights.
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
    published: bool = False

    @property
    def layer(self) -> int | None:
        """Number of its layer, None outside the layers."""
        return layer_of(self.name)

    @property
    def role(self) -> str:
        """Its part in the layer, such as `ffn_down`; "" where the name does not say."""
        return role_of(self.name)

    @property
    def published_type(self) -> QuantType | None:
        """The GGML type in which the makers published these weights (MXFP4), None for weights in another form."""
        return QuantType.__members__.get(self.dtype) if self.scales or self.published else None

    def at(self, type: QuantType) -> Tensor:
        """The tensor as it is written with this type."""
        return Tensor(self.name, self.shape[::-1], type)

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

    `metadata` holds the GGUF entries that describe it: sizes, tokenizer, chat template, general facts. `tensors` has
    the order in which the source completes them, `shards` lists the source's files in the order in which they are read.
    `stops` holds every token id that ends an answer, `defaults` the sampling settings that the model's makers
    recommend, `capabilities` words of Ollama's API (`completion`, `tools`, `thinking`, `insert`, `embedding`).

    A source that is quantized already has a `level`, is copied instead of converted, and keeps the GGUF kind of each
    entry in `kinds`. `left_out` maps each part of a larger model that is not converted, in words, to its bytes.
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

    @classmethod
    def of(cls, header: Header) -> ModelPlan:
        """The plan of a GGUF file that is quantized already: its tensors with the types that they have, no sources.

        MXFP4 counts as published by the makers, and stays at every level, unless the file says that somebody quantized
        it to that.
        """
        metadata = header.metadata
        original = metadata.get("general.file_type") != MXFP4_MOE
        tensors = tuple(
            TensorPlan(
                tensor.name,
                tensor.shape[::-1],
                tensor.type.name,
                size=tensor.nbytes,
                published=original and tensor.type is QuantType.MXFP4,
            )
            for tensor in header.tensors
        )
        return cls(str(metadata.get("general.architecture", "")), metadata, tensors, ())

    def at(self, types: Mapping[str, QuantType]) -> list[Tensor]:
        """The tensors as they are written with `types`, which has a type for each name."""
        return [tensor.at(types[tensor.name]) for tensor in self.tensors]

    def as_stored(self) -> list[Tensor]:
        """The tensors of a source that is quantized already; UnknownLevel for a type that GGUF does not have."""
        return [tensor.at(QuantType.by_name(tensor.dtype)) for tensor in self.tensors]

    @property
    def tied(self) -> bool:
        """Whether the token embedding is the output matrix as well, because the model has none of its own."""
        return all(tensor.name != "output.weight" for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        """Number of trained values."""
        return sum(tensor.elements for tensor in self.tensors if tensor.shard)

    @property
    def source_bytes(self) -> int:
        """Bytes of weights that will be read from the source."""
        return sum(tensor.size for tensor in self.tensors)

    def reads(self, first: int = 0) -> Iterator[Read]:
        """The reads of the source for the tensors from number `first` on, in the order in which the source has them."""
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
