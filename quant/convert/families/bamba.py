"""Bamba: mixers of Mamba's second kind and some layers that attend, of whose heads a half is rotated.

Source: `modeling_bamba.py` of transformers; llama.cpp's `granite-hybrid.cpp` computes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quant.convert.base import Family, Layers, in_layers
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, hybrid
from quant.convert.families.decoder import DecoderSizes, linear, norm
from quant.convert.families.hybrid import MixerSizes
from quant.convert.reordering import PairRotatedPart
from quant.errors import UnsupportedModel
from quant.plan import Reversible

# The class rotates this part of a head, whatever its settings say.
_ROTATED = 0.5


@dataclass(frozen=True, kw_only=True)
class _BambaSizes(DecoderSizes, MixerSizes):
    mixing: Layers
    attending: Layers


def _read_sizes(config: ModelConfig) -> _BambaSizes:
    sizes = decoder.read_sizes(config.changed({"partial_rotary_factor": _ROTATED}))
    inner = sizes.width * config.count("mamba_expand", 2)
    if inner != 2 * sizes.width:
        raise UnsupportedModel("its inner size is not twice its width, as llama.cpp needs it")
    mixers = hybrid.read_mixer_sizes(config, sizes, inner, config.count("mamba_n_heads"))
    given = config.get("attn_layer_indices") or []
    if not isinstance(given, list) or any(type(each) is not int for each in given):
        raise config.wrong("attn_layer_indices", "a list of the layers that attend")
    attending = frozenset(given) & frozenset(range(sizes.layers))
    if not attending or len(attending) == sizes.layers:
        raise UnsupportedModel("its layers are of one kind (`attn_layer_indices`), and llama.cpp's hybrids have two")
    return _BambaSizes(
        **(vars(sizes) | vars(mixers)), mixing=frozenset(range(sizes.layers)) - attending, attending=attending
    )


def _describe(config: ModelConfig, sizes: _BambaSizes) -> dict[str, Any]:
    # transformers makes the same of these.
    config.without_effect("attn_rotary_emb", "layers_block_type", "layer_types", "mamba_d_head", "z_loss_coefficient")
    return {
        **decoder.describe(config, sizes),
        **hybrid.describe_mixer(sizes),
        "attention.head_count_kv": [sizes.key_heads * (number in sizes.attending) for number in range(sizes.layers)],
        # llama.cpp reads here whether queries and keys are rotated.
        "rope.scaling.finetuned": True,
    }


def _pair(sizes: _BambaSizes) -> Reversible:
    return PairRotatedPart(sizes.head, sizes.rotated)


BAMBA = Family(
    classes=("BambaForCausalLM",),
    architecture="granitehybrid",
    tensors=(
        decoder.EMBEDDING,
        decoder.OUTPUT,
        *decoder.final_norm("final_layernorm"),
        *norm("input_layernorm", "attn_norm"),
        *norm("pre_ff_layernorm", "ffn_norm"),
        *in_layers(
            "attending",
            *(row.transformed(_pair) for row in linear("self_attn.q_proj", "attn_q", "queries", "width")),
            *(row.transformed(_pair) for row in linear("self_attn.k_proj", "attn_k", "keys", "width")),
            *linear("self_attn.v_proj", "attn_v", "keys", "width"),
            *linear("self_attn.o_proj", "attn_output", "width", "queries"),
        ),
        *in_layers("mixing", *hybrid.mixer("mamba")),
        *linear("feed_forward.gate_proj", "ffn_gate", "feed_forward", "width"),
        *linear("feed_forward.up_proj", "ffn_up", "feed_forward", "width"),
        *linear("feed_forward.down_proj", "ffn_down", "width", "feed_forward"),
    ),
    sizes=_BambaSizes,
    read_sizes=_read_sizes,
    describe=_describe,
)
FAMILIES = (BAMBA,)
