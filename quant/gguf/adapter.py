"""Adapters as GGUF files: the header of one checked, alone and against the header of its base.

Source of the layout: `src/llama-adapter.cpp` of llama.cpp. Like `check.py`, this needs only the standard library.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from quant.errors import MalformedFile, UnsupportedModel
from quant.gguf.architectures import KNOWN, UNADAPTED
from quant.gguf.header import MAGIC, Header
from quant.types import QuantType, Tensor, role_of

TYPE, LORA = "adapter", "lora"
KIND, ALPHA, INVOCATION = "adapter.type", "adapter.lora.alpha", "adapter.alora.invocation_tokens"
DOWN, UP = ".lora_a", ".lora_b"
EMBEDDING = "token_embd.weight"
# The number of the type "string" in GGUF.
_STRING = 8
_FLOATS = (QuantType.F32, QuantType.F16, QuantType.BF16)
_HINT = "use another file of the adapter, or its PEFT folder"


@dataclass(frozen=True)
class AdapterPair:
    """The change of the base's tensor `name`: A, B, and the rank of both. Shapes are in GGUF's order, columns first."""

    name: str
    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        """The columns of B."""
        return self.up.shape[0]


@dataclass(frozen=True)
class AdapterHeader:
    """A checked adapter: the architecture of its base, alpha, and its pairs by the tensors of the base."""

    architecture: str
    alpha: float
    pairs: dict[str, AdapterPair]

    @property
    def ranks(self) -> list[int]:
        """The ranks, ascending."""
        return sorted({pair.rank for pair in self.pairs.values()})

    @property
    def roles(self) -> list[str]:
        """The roles of the tensors that change, such as `attn_q`, in alphabetical order."""
        return sorted({role_of(name) or name for name in self.pairs})

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices."""
        return sum(pair.down.nbytes + pair.up.nbytes for pair in self.pairs.values())


def is_adapter(header: Header) -> bool:
    """Whether a GGUF file is an adapter."""
    return header.metadata.get("general.type") == TYPE


def begins_as_adapter(beginning: bytes) -> bool:
    """Whether a file is an adapter, by its first kilobytes, so that no long header must be read."""
    text = len(TYPE).to_bytes(8, "little") + TYPE.encode()
    return beginning.startswith(MAGIC) and b"general.type" + _STRING.to_bytes(4, "little") + text in beginning


def check_adapter(header: Header) -> AdapterHeader:
    """The adapter that a header describes.

    Raises MalformedFile where it contradicts itself, UnsupportedModel for what llama.cpp cannot do or would pass over.
    """
    metadata, name = header.metadata, header.name
    architecture, kind, alpha = (metadata.get(key) for key in ("general.architecture", KIND, ALPHA))
    if not is_adapter(header):
        raise MalformedFile(f"`{name}` is no adapter", "`lm pull` it as a model")
    if kind != LORA:
        raise UnsupportedModel(f"`{name}` is an adapter of the kind `{ascii(kind)[:40]}`, and only LoRA can be run")
    if not isinstance(architecture, str) or architecture not in KNOWN:
        raise UnsupportedModel(f"`{name}` is for the unknown architecture `{ascii(architecture)[:64]}`")
    if header.kinds.get(ALPHA) != "f32" or not isinstance(alpha, float) or not math.isfinite(alpha) or not alpha:
        shown = "is missing" if alpha is None else f"is {ascii(alpha)[:20]}"
        raise MalformedFile(f"`{name}` cannot be used: `{ALPHA}` {shown}, and without it nobody knows its scale", _HINT)
    if metadata.get(INVOCATION):
        raise UnsupportedModel(f"`{name}` works from a certain token on (aLoRA), and not for a whole text", _HINT)
    halves: dict[str, dict[str, Tensor]] = {}
    for tensor in header.tensors:
        base, dot, half = tensor.name.rpartition(".")
        if f"{dot}{half}" not in (DOWN, UP):
            raise UnsupportedModel(
                f"`{name}` holds `{tensor.name[:80]}` beside its matrices, which llama.cpp does not use", _HINT
            )
        halves.setdefault(base, {})[f"{dot}{half}"] = tensor
    if not halves:
        raise MalformedFile(f"`{name}` holds no tensors", _HINT)
    pairs = {base: _pair(name, base, found) for base, found in halves.items()}
    for base in pairs:
        if role_of(base) in UNADAPTED.get(architecture, ()):
            raise UnsupportedModel(
                f"`{name}` changes `{base}`, and llama.cpp's `{architecture}` passes over that", _HINT
            )
    return AdapterHeader(architecture, alpha, pairs)


def _pair(name: str, base: str, found: dict[str, Tensor]) -> AdapterPair:
    if len(found) < 2:
        raise MalformedFile(f"`{name}` has only one of the two matrices for `{base[:80]}`", _HINT)
    down, up = found[DOWN], found[UP]
    rank = down.shape[0] if base == EMBEDDING else down.shape[1] if len(down.shape) > 1 else 0
    if not rank or len(up.shape) < 2 or up.shape[0] != rank or down.shape[2:] != up.shape[2:] or 0 in up.shape:
        raise MalformedFile(
            f"`{name}` has matrices for `{base[:80]}` that do not fit together: {down.shape} and {up.shape}",
            _HINT,
        )
    for tensor in (down, up):
        if tensor.type not in _FLOATS and not tensor.type.block > 1:
            raise UnsupportedModel(
                f"`{name}` has `{tensor.name[:80]}` as {tensor.type.name}, which is no weight", _HINT
            )
    return AdapterPair(base, down, up)


def check_base(adapter: AdapterHeader, architecture: str, shapes: Mapping[str, tuple[int, ...]], shown: str) -> None:
    """Raise MalformedFile unless the adapter is for a model of this architecture, whose tensors have these shapes.

    Shapes are in GGUF's order, columns first. Messages call the model `shown`.
    """
    hint = "name the model that it was trained on"
    if architecture != adapter.architecture:
        raise MalformedFile(
            f"the adapter is for a model of `{adapter.architecture}`, and `{shown}` is one of `{architecture}`", hint
        )
    for name, pair in adapter.pairs.items():
        if name not in shapes:
            raise MalformedFile(f"the adapter changes `{name[:80]}`, which `{shown}` does not have", hint)
        if name == EMBEDDING and "output.weight" not in shapes:
            raise MalformedFile(
                f"the adapter changes the embedding, which in `{shown}` is the output as well", "merge it into the base"
            )
        wanted = (*shapes[name], 1) if len(shapes[name]) == 1 else shapes[name]
        changed = (pair.down.shape[0], *pair.up.shape[1:])
        if name == EMBEDDING:
            changed = (pair.up.shape[1], pair.down.shape[1])
        if changed != wanted:
            raise MalformedFile(
                f"the adapter changes `{name[:80]}` as {list(changed)}, and in `{shown}` it is {list(wanted)}", hint
            )
