"""GGUF files of Ollama's converter that differ from llama.cpp's in names only: translated from their headers.

gpt-oss is called `gptoss` there, with other names for three tensors of a layer and without the width of its experts,
which a tensor's shape tells. LFM 2 has another name for its last norm, and in some files a wrong width. Files that
differ in more (vision weights inside, heads counted for each layer) are refused by llama.cpp's own look at the header.

Source of the differences: https://github.com/ollama/ollama/blob/main/llama/compat/README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from quant.gguf.header import Header, TensorInfo

REMARK = "names translated from Ollama's dialect of GGUF"
_GPT_OSS = {
    "attn_out.weight": "attn_output.weight",
    "attn_out.bias": "attn_output.bias",
    "attn_sinks": "attn_sinks.weight",
    "ffn_norm.weight": "post_attention_norm.weight",
}


def translate(header: Header) -> tuple[Header, Mapping[str, str]]:
    """The header with llama.cpp's names, and the new name of each tensor that was renamed; nothing for other files."""
    translation = _TRANSLATIONS.get(header.metadata.get("general.architecture"))
    return translation(header) if translation else (header, {})


def _gpt_oss(header: Header) -> tuple[Header, Mapping[str, str]]:
    metadata = {_prefixed(key): value for key, value in header.metadata.items()} | {"general.architecture": "gpt-oss"}
    kinds = {_prefixed(key): kind for key, kind in header.kinds.items()}
    width = _columns(header, "blk.0.ffn_gate_exps.weight")
    if width and "gpt-oss.expert_feed_forward_length" not in metadata:
        metadata["gpt-oss.expert_feed_forward_length"], kinds["gpt-oss.expert_feed_forward_length"] = width, "u32"
    names = {}
    for tensor in header.tensors:
        layer, _, role = tensor.name.partition(".")[2].partition(".")
        if tensor.name.startswith("blk.") and role in _GPT_OSS:
            names[tensor.name] = f"blk.{layer}.{_GPT_OSS[role]}"
    return _renamed(header, metadata, kinds, names), names


def _lfm2(header: Header) -> tuple[Header, Mapping[str, str]]:
    there = {tensor.name for tensor in header.tensors}
    if "output_norm.weight" not in there or "token_embd_norm.weight" in there:
        return header, {}
    metadata, key = dict(header.metadata), "lfm2.feed_forward_length"
    if key in metadata and (width := _columns(header, "blk.0.ffn_gate.weight")):
        metadata[key] = width
    names = {"output_norm.weight": "token_embd_norm.weight"}
    return _renamed(header, metadata, header.kinds, names), names


_TRANSLATIONS: Mapping[Any, Callable[[Header], tuple[Header, Mapping[str, str]]]] = {"gptoss": _gpt_oss, "lfm2": _lfm2}


def _prefixed(key: str) -> str:
    return f"gpt-oss.{key.removeprefix('gptoss.')}" if key.startswith("gptoss.") else key


def _columns(header: Header, name: str) -> int:
    """The second size of a tensor in GGUF's order, 0 where there is none."""
    return next((tensor.shape[1] for tensor in header.tensors if tensor.name == name and len(tensor.shape) > 1), 0)


def _renamed(header: Header, metadata: dict[str, Any], kinds: Mapping[str, str], names: Mapping[str, str]) -> Header:
    def rename(tensor: TensorInfo) -> TensorInfo:
        return replace(tensor, name=names.get(tensor.name, tensor.name))

    return replace(header, metadata=metadata, kinds=dict(kinds), tensors=tuple(map(rename, header.tensors)))
