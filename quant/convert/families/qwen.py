"""Qwen 2, 2.5 and 3: Llama's layers with biases (2) or norms of every head (3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quant.convert.base import Family, headless
from quant.convert.config import ModelConfig
from quant.convert.families import decoder
from quant.convert.families.decoder import DecoderSizes


def _describe(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    entries = decoder.describe(config, sizes)
    return decoder.bounded_by_window(config, entries) if config.flag("use_sliding_window") else entries


QWEN2 = Family(
    classes=("Qwen2ForCausalLM",),
    architecture="qwen2",
    tensors=decoder.STANDARD,
    sizes=DecoderSizes,
    read_sizes=decoder.read_sizes,
    describe=_describe,
)
QWEN3 = Family(
    classes=("Qwen3ForCausalLM",),
    architecture="qwen3",
    tensors=decoder.STANDARD + decoder.HEAD_NORMS,
    sizes=DecoderSizes,
    read_sizes=decoder.read_sizes,
    describe=_describe,
)
# Published for embeddings without the output.
BARE = tuple(
    replace(headless(whole), classes=(name,), encoder=True)
    for whole, name in ((QWEN2, "Qwen2Model"), (QWEN3, "Qwen3Model"))
)
FAMILIES = (QWEN2, QWEN3, *BARE)
