"""Checks that the header of a GGUF file describes a model that is safe to load with llama.cpp.

llama.cpp aborts, or worse, on some headers that are valid GGUF and no model. Like the reader, this needs only the
standard library. Oddities that llama.cpp takes are let pass; chat templates are the worker's business.
"""

from __future__ import annotations

import math
import re
from typing import Any

from quant.errors import MalformedFile, UnsupportedModel
from quant.gguf.architectures import KNOWN, NOT_RUN, REQUIRED, SECTIONED
from quant.gguf.header import TOKEN_BYTE, Header
from quant.types import QuantType, Tensor

MAX_BLOCKS = 512
# The largest value that a model may have for each entry. llama.cpp multiplies these numbers to get sizes in memory.
_LIMITS = {
    "context_length": 1 << 30,
    "embedding_length": 1 << 20,
    "feed_forward_length": 1 << 22,
    "attention.head_count": 1 << 14,
    "attention.head_count_kv": 1 << 14,
    "attention.key_length": 1 << 14,
    "attention.value_length": 1 << 14,
    "rope.dimension_count": 1 << 14,
    "vocab_size": 1 << 24,
}
# The largest number of a pooling (`LLAMA_POOLING_TYPE_RANK`).
_POOLING = 4
_NEEDED = ("context_length", "embedding_length", "feed_forward_length", "attention.head_count")
_VOCABULARY = {
    "tokens": ("arr[str]",),
    "scores": ("arr[f32]", "arr[i32]"),
    "token_type": ("arr[i32]",),
    "merges": ("arr[str]",),
}
# Values of `tokenizer.ggml.model` for a model that gets numbers of tokens alone.
_NO_VOCABULARY = (None, "none", "no_vocab")
# Types of which llama.cpp computes no product: they are for activations alone, or hold whole or double numbers.
_NO_WEIGHTS = {QuantType[name] for name in ("Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64")}
# Tables of whole numbers: the experts of each token in DeepSeek 4, tokens of a draft as tokens of its model.
_TABLES = ("ffn_gate_tid2eid", "d2t")


def check_model(header: Header) -> None:
    """Raise unless the header describes a model that is safe to load with llama.cpp.

    MalformedFile for impossible sizes, a vocabulary whose parts disagree or missing tensors; UnsupportedModel for an
    architecture that llama.cpp does not know.
    """
    architecture = header.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise _refuse(header, "`general.architecture` is missing")
    if architecture not in KNOWN:
        raise UnsupportedModel(f"`{header.name}` has the unknown architecture `{architecture[:64]}`")
    if architecture in NOT_RUN:
        raise UnsupportedModel(f"`{header.name}` has the architecture `{architecture}`: {NOT_RUN[architecture]}")
    if not header.tensors:
        raise _refuse(header, "it has no tensors")
    _check_sizes(header, architecture)
    _check_positions(header, architecture)
    _check_vocabulary(header)
    _check_tensors(header, architecture)


def _refuse(header: Header, rule: str) -> MalformedFile:
    hint = "it may be written by a program with a fault; use another file of the model, or its original weights"
    return MalformedFile(f"`{header.name}` is not a usable model: {rule}", hint)


def _check_sizes(header: Header, architecture: str) -> None:
    blocks: Any = header.metadata.get(f"{architecture}.block_count")
    if not _is_count(blocks, MAX_BLOCKS):
        raise _refuse(header, f"`{architecture}.block_count` is {blocks}, not between 1 and {MAX_BLOCKS}")
    for suffix, limit in _LIMITS.items():
        key = f"{architecture}.{suffix}"
        value = header.metadata.get(key)
        if suffix == "vocab_size" and "tokenizer.ggml.tokens" in header.metadata:
            continue  # counts only where there are no tokens
        if value is None and not (suffix in _NEEDED and architecture in REQUIRED):
            continue
        values = value if isinstance(value, list) else [value]
        if isinstance(value, list) and len(value) < blocks:
            raise _refuse(header, f"`{key}` has {len(value)} entries for {blocks} blocks")
        least = 1 if architecture in REQUIRED else 0
        if not all(_is_count(entry, limit, least) for entry in values):
            raise _refuse(header, f"`{key}` is not between {least} and {limit}")
    for key, value in header.metadata.items():
        if key.endswith("epsilon") and isinstance(value, float) and not 0 <= value < math.inf:
            raise _refuse(header, f"`{key}` is {value}")
    pooling = header.metadata.get(f"{architecture}.pooling_type", 0)
    if not _is_count(pooling, _POOLING, 0):
        raise _refuse(header, f"`{architecture}.pooling_type` is {pooling}, not between 0 and {_POOLING}")


def _check_positions(header: Header, architecture: str) -> None:
    """llama.cpp aborts where a rotation by sections has none, once a text is read."""
    sections = header.metadata.get(f"{architecture}.rope.dimension_sections")
    counts = sections if isinstance(sections, list) else [sections]
    if architecture in SECTIONED and not any(isinstance(count, int) and count > 0 for count in counts[:3]):
        raise _refuse(header, f"`{architecture}.rope.dimension_sections` is {sections}, and names no section")


def _is_count(value: Any, limit: int, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= limit


def _check_vocabulary(header: Header) -> None:
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        if header.metadata.get("tokenizer.ggml.model") in _NO_VOCABULARY:
            return
        raise _refuse(header, "its vocabulary is missing")
    for suffix, kinds in _VOCABULARY.items():
        key = f"tokenizer.ggml.{suffix}"
        if header.kinds.get(key, kinds[0]) not in kinds:
            raise _refuse(header, f"`{key}` is {header.kinds[key]} and must be {kinds[0]}")
        if suffix != "merges" and len(header.metadata.get(key, tokens)) < len(tokens):
            raise _refuse(header, f"`{key}` has {len(header.metadata[key])} entries for {len(tokens)} tokens")
    if not tokens:
        raise _refuse(header, "its vocabulary is empty")
    if len({_text(token, number) for number, token in enumerate(tokens)}) != len(tokens):
        raise _refuse(header, "its tokens are not all different")
    _check_byte_tokens(header, tokens)


def _text(token: str, number: int) -> str:
    """A token as llama.cpp stores it: up to a zero byte, and numbered where nothing is left."""
    return token.partition("\0")[0] or f"[EMPTY_{number}]"


def _check_byte_tokens(header: Header, tokens: list[str]) -> None:
    if header.metadata.get("tokenizer.ggml.model") not in ("llama", "plamo2"):
        return
    for token, type in zip(tokens, header.metadata.get("tokenizer.ggml.token_type", ()), strict=False):
        if type == TOKEN_BYTE and not re.fullmatch("<0x[0-9A-Fa-f]{2}>", token):
            raise _refuse(header, f"token `{token[:32]}` is no byte, but has the type of one")


def _check_tensors(header: Header, architecture: str) -> None:
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    blocks = header.metadata[f"{architecture}.block_count"]
    wanted = [
        name.format(block) for name in REQUIRED.get(architecture, ()) for block in range(blocks if "{}" in name else 1)
    ]
    missing = [name for name in wanted if name not in shapes]
    if header.metadata.get(f"{architecture}.expert_count"):  # Mixtral is a `llama` whose layers have experts in place
        missing = [name for name in missing if ".ffn_" not in name or ".ffn_norm." in name]
    if missing:
        raise _refuse(header, f"{len(missing)} tensors are missing, the first is `{missing[0]}`")
    embedding = shapes.get("token_embd.weight")
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    width = header.metadata.get(f"{architecture}.embedding_length")
    if embedding and tokens and embedding != (width, len(tokens)):
        raise _refuse(header, f"`token_embd.weight` is {list(embedding)} for {len(tokens)} tokens of width {width}")


def check_reads(header: Header) -> None:
    """Raise MalformedFile for a model without a vocabulary, to which no text can be given."""
    if header.metadata.get("tokenizer.ggml.model") in _NO_VOCABULARY:
        raise _refuse(header, "its vocabulary is missing")


def check_types(header: Header) -> None:
    """Raise MalformedFile for a tensor of a type with which llama.cpp cannot compute, where the weights stay as they
    are: it would abort when the first text is read."""
    for tensor in header.tensors:
        if (tensor.type in _NO_WEIGHTS and tensor.role not in ("", *_TABLES)) or (
            tensor.type is not QuantType.F32 and _added(tensor)
        ):
            raise _refuse(header, f"`{tensor.name}` is {tensor.type.name}, which llama.cpp cannot compute with")


def _added(tensor: Tensor) -> bool:
    """Whether a tensor is multiplied with, or added to, each row of values: norms and biases."""
    kind, _, part = tensor.name.rpartition(".")
    return tensor.rows == 1 and (part == "bias" or kind.endswith("norm"))
