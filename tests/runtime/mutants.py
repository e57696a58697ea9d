"""Mutants of a GGUF file: one entry or one tensor of it is gone, doubled, or has another kind, value, type or shape."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf, nan
from pathlib import Path
from typing import Any

from quant.gguf.architectures import KNOWN
from quant.gguf.header import read_file
from quant.gguf.writer import encode_header, layout
from quant.types import QuantType, Tensor

NUMBERS = {"u8": 255, "i8": -1, "u16": 65_535, "i16": -1, "u32": (1 << 32) - 1, "i32": -1, "u64": 1 << 40, "i64": -1}
KINDS = (*NUMBERS, "f32", "f64", "bool", "str")
WHOLE = (0, 1, 2, 3, 7, 64, 513, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
REAL = (0.0, -1.0, nan, inf, -inf, 1e30, 1e-30)
TEXTS = ("", "x", "no_vocab", "none", "llama", "gpt2", "bert", "t5", "rwkv", "plamo2", "gemma4", "default", "yarn")
# Entries that the file does not have, after the name of its architecture.
MORE: dict[str, tuple[Any, ...]] = {
    "expert_count": (1, 8, 600),
    "expert_used_count": (1, 2),
    "expert_group_count": (1, 3),
    "nextn_predict_layers": (1, (1 << 32) - 1),
    "leading_dense_block_count": (1, 1 << 31),
    "embedding_length_out": (0, 1, 1 << 20),
    "attention.causal": (False,),
    "attention.sliding_window": (0, 1, (1 << 32) - 1),
    "attention.key_length": (0, 1, 33, 1 << 14),
    "attention.value_length": (0, 1, 33),
    "attention.scale": REAL,
    "attention.clamp_kqv": REAL,
    "logit_scale": REAL,
    "residual_scale": REAL,
    "embedding_scale": REAL,
    "final_logit_softcapping": REAL,
    "pooling_type": (0, 1, 2, 3, 4, 5, 77),
    "rope.dimension_sections": ([1, 2], [1, 2, 3, 4]),
    "rope.scaling.type": ("yarn", "longrope", "linear", "none", "x"),
    "rope.scaling.factor": REAL,
    "rope.scaling.original_context_length": (0, 1),
    "rope.scaling.attn_factor": REAL,
    "vocab_size": (0, 1, 100, 1 << 20),
    "tensor_data_layout": ("x",),
    "use_parallel_residual": (True, False),
}
ENDS = ["bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "mask", "fim_pre", "fim_suf"]


@dataclass(frozen=True)
class Mutant:
    """What was changed, and the file's header after it."""

    name: str
    metadata: dict[str, Any]
    kinds: dict[str, str]
    tensors: tuple[Tensor, ...]

    @classmethod
    def none(cls, path: Path) -> Mutant:
        """The file as it is."""
        header = read_file(path)
        return cls("", dict(header.metadata), dict(header.kinds), tuple(header.tensors))

    def write(self, path: Path, original: Path) -> None:
        """The file, with the original's bytes in the tensors that have as many as before, and noise in the others."""
        header, placed = read_file(original), layout(self.tensors)
        before = {tensor.name: tensor for tensor in header.tensors}
        with original.open("rb") as source, path.open("wb") as file:
            start = file.write(encode_header(self.metadata, placed, self.kinds))
            for tensor in placed:
                old = before.get(tensor.name)
                if old and old.nbytes == tensor.nbytes:
                    source.seek(header.data_offset + old.offset)
                    data = source.read(old.nbytes)
                else:
                    data = random.Random(tensor.name).randbytes(min(tensor.nbytes, 1 << 20)).ljust(tensor.nbytes, b"\0")
                file.seek(start + tensor.offset)
                file.write(data)
            file.truncate(start + placed[-1].offset + -(-placed[-1].nbytes // 32) * 32 if placed else start)


def mutants(path: Path) -> Iterator[Mutant]:
    """All mutants of a file, in a fixed order."""
    whole = Mutant.none(path)
    for key in whole.metadata:
        yield from _of_entry(whole, key)
    architecture = whole.metadata["general.architecture"]
    for key, values in MORE.items():
        for value in values:
            yield with_entry(whole, f"{architecture}.{key}", value)
    for name in ENDS:
        for value, kind in ((1 << 20, "u32"), ((1 << 32) - 1, "u32"), (-1, "i32"), (3, "i32"), (3, "u64")):
            yield with_entry(whole, f"tokenizer.ggml.{name}_token_id", value, kind)
    for other in sorted(KNOWN - {architecture}):
        renamed = {key.replace(f"{architecture}.", f"{other}."): value for key, value in whole.metadata.items()}
        kinds = {key.replace(f"{architecture}.", f"{other}."): kind for key, kind in whole.kinds.items()}
        yield replace(
            whole, name=f"architecture {other}", metadata=renamed | {"general.architecture": other}, kinds=kinds
        )
    seen = set()
    for number, tensor in enumerate(whole.tensors):
        if (role := tensor.name if tensor.layer is None else tensor.role) not in seen:
            seen.add(role)
            yield from _of_tensor(whole, number)


def with_entry(whole: Mutant, key: str, value: Any, kind: str = "") -> Mutant:
    """The file with another entry, or another value of one; its kind is llama.cpp's usual one for the Python type."""
    kinds = {name: each for name, each in whole.kinds.items() if name != key} | ({key: kind} if kind else {})
    shown = f"{value!r:.40}" + (f" as {kind}" if kind else "")
    return replace(whole, name=f"{key} = {shown}", metadata={**whole.metadata, key: value}, kinds=kinds)


def _of_entry(whole: Mutant, key: str) -> Iterator[Mutant]:
    value, kind = whole.metadata[key], whole.kinds[key]
    rest = {name: each for name, each in whole.metadata.items() if name != key}
    yield replace(whole, name=f"without {key}", metadata=rest)
    if isinstance(value, list):
        for changed in ([], value[:-1], value * 2, value[:1] * len(value), value[::-1]):
            yield with_entry(whole, key, changed, kind)
        yield with_entry(whole, key, value[0] if value else 0)
        if kind != "arr[str]":
            yield from (
                with_entry(whole, key, [int(each) & 0x7F for each in value], f"arr[{other}]") for other in NUMBERS
            )
        return
    yield from (with_entry(whole, key, 1, other) for other in NUMBERS if other != kind)
    if kind in NUMBERS:
        yield from (with_entry(whole, key, value, other) for other in ("i32", "u64", "i64") if other != kind)
        yield from (with_entry(whole, key, number) for number in WHOLE)
    yield from (with_entry(whole, key, number, "f32") for number in REAL)
    yield from (with_entry(whole, key, text) for text in TEXTS)
    yield with_entry(whole, key, [1, 2, 3])


def _of_tensor(whole: Mutant, number: int) -> Iterator[Mutant]:
    tensor = whole.tensors[number]
    before, after = whole.tensors[:number], whole.tensors[number + 1 :]

    def changed(what: str, *those: Tensor) -> Mutant:
        return replace(whole, name=f"{tensor.name} {what}", tensors=(*before, *those, *after))

    yield changed("is gone")
    yield changed("has another name", replace(tensor, name="x.weight"))
    yield changed("has a bias", tensor, Tensor(tensor.name.replace("weight", "bias"), tensor.shape[-1:], QuantType.F32))
    for shape in (tensor.shape[::-1], (*tensor.shape[:-1], tensor.shape[-1] - 1), (*tensor.shape, 2), tensor.shape[:1]):
        if shape != tensor.shape and shape[0] % tensor.type.block == 0:
            yield changed(f"is {list(shape)}", replace(tensor, shape=shape))
    for type in QuantType:
        if type is not tensor.type and tensor.columns % type.block == 0:
            yield changed(f"is {type.name}", replace(tensor, type=type))
