"""Checks that the header of a GGUF file describes a model that is safe to load with llama.cpp.

llama.cpp aborts, or worse, on some headers that are valid GGUF and no model. Like the reader, this needs only the
standard library. Chat templates are only measured here; the worker parses them in its sandbox.
"""

from __future__ import annotations

import re
from typing import Any

from quant.errors import MalformedFile, UnsupportedModel
from quant.gguf.architectures import KNOWN, REQUIRED
from quant.gguf.header import TOKEN_BYTE, Header

MAX_BLOCKS = 512
MAX_TEMPLATE = 1 << 20
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
_NEEDED = ("context_length", "embedding_length", "feed_forward_length", "attention.head_count")
_VOCABULARY = {"tokens": "arr[str]", "scores": "arr[f32]", "token_type": "arr[i32]", "merges": "arr[str]"}


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
    if not header.tensors:
        raise _refuse(header, "it has no tensors")
    _check_sizes(header, architecture)
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
        if value is None and not (suffix in _NEEDED and architecture in REQUIRED):
            continue
        values = value if isinstance(value, list) else [value]
        if isinstance(value, list) and len(value) < blocks:
            raise _refuse(header, f"`{key}` has {len(value)} entries for {blocks} blocks")
        least = 1 if architecture in REQUIRED else 0
        if not all(_is_count(entry, limit, least) for entry in values):
            raise _refuse(header, f"`{key}` is not between {least} and {limit}")


def _is_count(value: Any, limit: int, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= limit


def _check_vocabulary(header: Header) -> None:
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        if header.metadata.get("tokenizer.ggml.model") in (None, "none", "no_vocab"):
            return
        raise _refuse(header, "its vocabulary is missing")
    for suffix, kind in _VOCABULARY.items():
        key = f"tokenizer.ggml.{suffix}"
        if header.kinds.get(key, kind) != kind:
            raise _refuse(header, f"`{key}` is {header.kinds[key]} and must be {kind}")
        if suffix != "merges" and len(header.metadata.get(key, tokens)) != len(tokens):
            raise _refuse(header, f"`{key}` has {len(header.metadata[key])} entries for {len(tokens)} tokens")
    if not tokens or len(set(tokens)) != len(tokens):
        raise _refuse(header, "its tokens are not all different" if tokens else "its vocabulary is empty")
    for key, value in header.metadata.items():
        if key.startswith("tokenizer.ggml.") and key.endswith("_token_id"):
            # Some converters write -1, or the same in 32 bits, for "none".
            if isinstance(value, int) and (0 <= value < len(tokens) or value in (-1, 0xFFFFFFFF)):
                continue
            raise _refuse(header, f"`{key}` is {value}, outside the {len(tokens)} tokens")
    _check_byte_tokens(header, tokens)
    for key, value in header.metadata.items():
        if key.startswith("tokenizer.chat_template") and isinstance(value, str) and len(value) > MAX_TEMPLATE:
            raise _refuse(header, f"`{key}` is longer than 1 MiB")


def _check_byte_tokens(header: Header, tokens: list[str]) -> None:
    if header.metadata.get("tokenizer.ggml.model") not in ("llama", "plamo2"):
        return
    for token, type in zip(tokens, header.metadata.get("tokenizer.ggml.token_type", ()), strict=False):
        if type == TOKEN_BYTE and not re.fullmatch("<0x[0-9A-F]{2}>", token):
            raise _refuse(header, f"token `{token[:32]}` is no byte, but has the type of one")


def _check_tensors(header: Header, architecture: str) -> None:
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    blocks = header.metadata[f"{architecture}.block_count"]
    wanted = [
        name.format(block) for name in REQUIRED.get(architecture, ()) for block in range(blocks if "{}" in name else 1)
    ]
    missing = [name for name in wanted if name not in shapes]
    if missing:
        raise _refuse(header, f"{len(missing)} tensors are missing, the first is `{missing[0]}`")
    embedding = shapes.get("token_embd.weight")
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    width = header.metadata.get(f"{architecture}.embedding_length")
    if embedding and tokens and embedding != (width, len(tokens)):
        raise _refuse(header, f"`token_embd.weight` is {list(embedding)} for {len(tokens)} tokens of width {width}")
