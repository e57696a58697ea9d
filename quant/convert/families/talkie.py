"""Talkie: norms without weights, a gain for each head and layer, and the embedding added again behind every layer.

Sources: the code in the model's repository, `talkie.cpp` of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import numpy as np

from quant.convert.base import HEAD, UNQUANTIZED, Family, Known, choices, tensor
from quant.convert.config import ModelConfig
from quant.convert.families import decoder
from quant.convert.families.decoder import DecoderSizes, layer, linear
from quant.convert.families.unrotated import block
from quant.convert.peeking import peek
from quant.convert.transforms import TurnBack
from quant.errors import MalformedFile, UnsupportedModel
from quant.plan import Files, Reversible
from quant.safetensors import Entry

_GAIN = "lm_head_gain.w_g"


def _read_sizes(config: ModelConfig) -> DecoderSizes:
    sizes = decoder.read_sizes(config)
    if sizes.heads != sizes.key_heads:
        raise UnsupportedModel("its heads share keys, and the gains of llama.cpp's `talkie` are of heads that do not")
    return sizes


def _describe(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    # Its norms add the smallest difference that their numbers know, whatever the settings say.
    epsilon = float(np.finfo(np.float32).eps)
    config.without_effect("rms_norm_eps")
    return decoder.describe(config.changed({"rms_norm_eps": epsilon}), sizes)


def _measure_gain(files: Files, entries: Iterable[Entry], sizes: DecoderSizes) -> dict[str, Any]:
    """The factor of the logits."""
    for entry in entries:
        if entry.name.endswith(_GAIN) and entry.dtype in UNQUANTIZED and prod(entry.shape) == 1:
            return {"talkie.logit_scale": float(peek(files, entry, 0, 1).reshape(-1)[0])}
    raise MalformedFile(f"the weights lack `{_GAIN}`", hint="download the model again")


def _tell_gain(entries: Mapping[str, Any], sizes: DecoderSizes) -> dict[str, float]:
    return {_GAIN: float(entries["talkie.logit_scale"])}


def _turn_back(sizes: DecoderSizes) -> Reversible:
    return TurnBack(sizes.head)


def _turned(source: str, target: str, rows: str) -> Known:
    """A matrix of heads that are rotated the other way round."""
    return layer(f"{source}.weight", f"{target}.weight", rows, "width", transform=_turn_back)


TALKIE = Family(
    classes=("TalkieForCausalLM",),
    architecture="talkie",
    tensors=(
        tensor("embed.weight", "token_embd.weight", "vocabulary", "width"),
        *choices(value=(tensor("lm_head", HEAD, "vocabulary", "width"),), matrix=(decoder.OUTPUT,)),
        Known(_GAIN, (), (1,)),
        *block(
            "blocks.{}.",
            (
                _turned("attn.attn_query", "attn_q", "queries"),
                _turned("attn.attn_key", "attn_k", "keys"),
                *linear("attn.attn_value", "attn_v", "keys", "width", bias=False),
                *linear("attn.attn_resid", "attn_output", "width", "queries", bias=False),
                layer("attn.head_gain.head_g", "attn_q_norm.weight", "heads", becomes=("heads", 1)),
                layer("attn_gain.a_g", "attn_output.scale", 1),
                *linear("mlp.mlp_gate", "ffn_gate", "feed_forward", "width", bias=False),
                *linear("mlp.mlp_linear", "ffn_up", "feed_forward", "width", bias=False),
                *linear("mlp.mlp_resid", "ffn_down", "width", "feed_forward", bias=False),
                layer("mlp_gain.a_g", "ffn_down.scale", 1),
                layer("embed_skip.a_g", "layer_output_scale.weight", 1),
            ),
        ),
    ),
    sizes=DecoderSizes,
    read_sizes=_read_sizes,
    describe=_describe,
    measured=_measure_gain,
    told=_tell_gain,
)
FAMILIES = (TALKIE,)
