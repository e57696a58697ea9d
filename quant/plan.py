"""The plan of a GGUF file, made before a weight is read: its tensors, and the bytes of the source for each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from quant.gguf.header import Header
from quant.types import QuantType, Tensor, layer_of, role_of

if TYPE_CHECKING:
    import numpy as np

# Name of a part in `ModelPlan.left_out`, as `lm` shows it: the layers that predict tokens beyond the next one.
NEXT_TOKEN_LAYERS = "guesses at further tokens"
# `general.file_type` of a file whose experts somebody quantized to MXFP4 (`LLAMA_FTYPE_MOSTLY_MXFP4_MOE` of llama.cpp).
MXFP4_MOE = 38


class Files(Protocol):
    """The files of a model, read by range; a folder or a repository of a hub (`registry/sources/`) is one."""

    @property
    def title(self) -> str:
        """The folder's path or the repository's name, for messages."""

    def names(self) -> list[str]:
        """Paths of the files, relative to the model's folder."""

    def size(self, name: str) -> int:
        """Length in bytes."""

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`."""


class Transform(Protocol):
    """A change of a tensor's values, made slab by slab; `quant/convert/transforms.py` has them all.

    `rows` says where a tensor may be cut. With `rows` 1 any row can be changed alone. With 64, such as the rows of one
    head, every slab has a multiple of 64 rows. With 0 a part of the tensor is never cut.
    """

    @property
    def rows(self) -> int:
        """The number of rows that must be in the same slab; 0: all rows of a part."""

    def apply(self, x: np.ndarray) -> np.ndarray:
        """The changed slab. `x` is [n * rows, columns] of the source's dtype, or [1, values] where `rows` is 0."""


class Reversible(Transform, Protocol):
    """A transform of a family: `lm export` takes values back to where they were in the source."""

    def undo(self, x: np.ndarray, out: np.ndarray) -> None:
        """Put the values of a changed slab back: `out` is float32 as `apply` takes it; what it had no use for stays."""


class Packing(Protocol):
    """How the source stores a quantized matrix: an array of packed weights and companions, such as scales and zeros.

    Each is a frozen dataclass, because its `repr` is a part of a conversion's fingerprint; `quant/stream/packed/` has
    them all. `arrays` are the weights and then the companions, flat, of the numpy types in `dtypes`.
    """

    @property
    def name(self) -> str:
        """The name for users, such as `MXFP4` or `4-bit codes of GPTQ`."""

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The numpy type of the weights and of each companion."""

    @property
    def exact(self) -> QuantType | None:
        """The GGML type that holds the weights as they are; None where no type does."""

    def values(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        """The numbers that the weights stand for: float32[rows, columns]. Raises BadValues."""

    def blocks(self, arrays: Sequence[np.ndarray], transform: Transform | None) -> np.ndarray:
        """The weights as blocks of `exact`, uint8[rows, bytes], their rows as `transform` moves them; BadValues."""


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes of the source with some rows of an output tensor: `size` bytes at `offset` of file `shard`."""

    shard: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One output tensor, and the bytes of the source that it is made of.

    `shape` is in the source's order, rows first: (32000, 4096) has 32,000 rows of 4,096; GGUF's order is the reverse.
    `dtype` is the type in the source: a safetensors type, the name of a `packing`, or a GGML type in a GGUF file.
    The values are `size` bytes at `offset` of file `shard`. A tensor that we compute ourselves has its values in
    `values` (float32, little-endian), and an empty `shard`.

    A stack of experts has one of `parts` for each matrix, in the order of its rows: with 8 experts 8 parts, and `size`
    is their sum. Two tensors may share their parts: a fused gate and up projection is read once, and the `transform` of
    each tensor selects its rows. Their sizes then add up to the bytes of the parts. An output matrix that is the
    embedding again has the size 0.

    A quantized matrix has a `packing`, and `companions` has one entry for each entry of `parts`: the parts of the
    source with its scales and the like. `size` includes them.

    `published` marks a tensor of a GGUF file whose type is the one in which the model's makers published the weights.
    Such a tensor keeps its type at every level that would not make it smaller.
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
    packing: Packing | None = None
    companions: tuple[tuple[Part, ...], ...] = ()
    published: bool = False

    @property
    def layer(self) -> int | None:
        """The number of its layer; None outside the layers."""
        return layer_of(self.name)

    @property
    def role(self) -> str:
        """Its role in the layer, such as `ffn_down`; "" where the name has none. See `role_of`."""
        return role_of(self.name)

    @property
    def published_type(self) -> QuantType | None:
        """The quantized GGML type that holds the weights as their makers published them; None for all other weights."""
        if self.packing:
            return self.packing.exact
        return QuantType.__members__.get(self.dtype) if self.published else None

    @property
    def again(self) -> bool:
        """Whether another tensor is made of the same bytes, and counts for both."""
        return bool(self.parts) and not self.size

    def at(self, type: QuantType) -> Tensor:
        """The tensor of the GGUF file, written with this type."""
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

    - `metadata`: the GGUF entries that describe the model: sizes, tokenizer, chat template, general facts.
    - `tensors`: in the order in which the source completes them. `shards`: the source's files in reading order.
    - `stops`: every token id that ends an answer. `defaults`: the sampling settings that the model's makers recommend.
    - `capabilities`: words of Ollama's API (`completion`, `tools`, `thinking`, `insert`, `embedding`, `rerank`).
    - `level`, `kinds`: only for a source that is quantized already, and is copied instead of converted. `kinds` has the
      GGUF kind of each entry of `metadata` (`u32`, `arr[i32]`, …), so that the copy has the same.
    - `left_out`: the parts of the model that are not converted, such as `vision`, and their bytes.
    - `translated`: names of a GGUF file are changed, or rows cut out, so that its header is written anew in a copy.
    - `remarks`: clauses on what the files say and cannot be so, such as numbers of tokens that there are not.
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
    remarks: tuple[str, ...] = ()
    translated: bool = False

    @classmethod
    def of(cls, header: Header) -> ModelPlan:
        """A plan with the tensors of a GGUF file, to ask about sizes and levels; it has no source to convert from.

        MXFP4 tensors count as `published`, unless the file's `general.file_type` says that somebody quantized them.
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
        return cls(str(metadata.get("general.architecture", "")), metadata, tensors, (), kinds=header.kinds)

    def at(self, types: Mapping[str, QuantType]) -> list[Tensor]:
        """The tensors of the GGUF file, written with `types`, which maps the name of every tensor to its type."""
        return [tensor.at(types[tensor.name]) for tensor in self.tensors]

    def as_stored(self) -> list[Tensor]:
        """The tensors with the types of the source; UnknownLevel where the source's type is no GGML type."""
        return [tensor.at(QuantType.by_name(tensor.dtype)) for tensor in self.tensors]

    @property
    def tied(self) -> bool:
        """Whether the model has no output matrix, so that the token embedding serves as one."""
        return all(tensor.name != "output.weight" for tensor in self.tensors)

    @property
    def parameters(self) -> int:
        """Number of trained values; an output matrix that is the embedding again adds none."""
        return sum(tensor.elements for tensor in self.tensors if tensor.shard and not tensor.again)

    @property
    def source_bytes(self) -> int:
        """Bytes of weights and their companions that the source has for all tensors."""
        return sum(tensor.size for tensor in self.tensors)

    def reads(self, first: int = 0) -> Iterator[Read]:
        """The parts of all tensors from number `first` on, in the order in which they lie in the source's files."""
        order = {shard: number for number, shard in enumerate(self.shards)}
        found = []
        for index, tensor in enumerate(self.tensors[first:], first):
            parts = tensor.parts or (Part(tensor.shard, tensor.offset, tensor.size),)
            found += [Read(index, number, part) for number, part in enumerate(parts) if tensor.shard]
            found += [
                Read(index, number, part, place)
                for number, companions in enumerate(tensor.companions)
                for place, part in enumerate(companions, 1)
            ]
        return iter(sorted(found, key=lambda read: (order[read.part.shard], read.part.offset)))


class Read(NamedTuple):
    """Part number `number` of tensor number `tensor` of a plan, or companion `companion`, from 1, of that part."""

    tensor: int
    number: int
    part: Part
    companion: int = 0


Progress = Callable[[int, int], None]
