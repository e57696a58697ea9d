"""Llama 4, its language model: experts in all layers or every other one, and beside them one that always answers.

Gate and up lie side by side in matrices that are stored turned. In three of four layers attention sees chunks of 8,192
tokens, in the fourth all and nothing is rotated; llama.cpp takes that, and how attention sharpens far behind, for
granted. Sources: `modeling_llama4.py` of transformers, `llama4.cpp` of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from quant.convert.base import Family, Layers, count_layers, in_layers
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, moe, rotary
from quant.convert.families.decoder import router
from quant.convert.families.moe import MixtureSizes
from quant.errors import UnsupportedModel

# llama.cpp has these built in, and leaves out the norms of queries and keys in models with this number of experts.
_FIXED = {"attention_chunk_size": 8192, "floor_scale": 8192, "attn_scale": 0.1}
_WITHOUT_NORMS = 128


@dataclass(frozen=True, kw_only=True)
class _Llama4Sizes(MixtureSizes):
    """Every `step`-th layer is `routed`, the others are `plain`."""

    step: int
    routed: Layers
    plain: Layers


def _read_sizes(config: ModelConfig) -> _Llama4Sizes:
    expert, layers = config.count("intermediate_size"), count_layers(config)
    step = config.count("interleave_moe_layer_step", 1)
    routed = [number for number in range(layers) if (number + 1) % step == 0]
    if config.get("moe_layers") not in (None, routed):
        raise UnsupportedModel("it has experts in other layers than every N-th")
    wide = config.count("intermediate_size_mlp")
    return _Llama4Sizes(
        **vars(decoder.read_sizes(config.changed({"intermediate_size": wide}))),
        experts=config.count("num_local_experts"),
        expert=expert,
        shared_expert=expert,
        step=step,
        routed=frozenset(routed),
        plain=frozenset(range(layers)) - frozenset(routed),
    )


def _describe(config: ModelConfig, sizes: _Llama4Sizes) -> dict[str, Any]:
    other = [key for key, value in _FIXED.items() if config.get(key, value) != value]
    if not decoder.every_fourth_unrotated(config, sizes.layers):
        other.append("no_rope_layers")
    kinds = config.get("layer_types")
    if kinds and kinds != [
        "full_attention" if number % 4 == 3 else "chunked_attention" for number in range(sizes.layers)
    ]:
        other.append("layer_types")
    if config.flag("use_qk_norm", True) is (sizes.experts == _WITHOUT_NORMS):
        other.append("use_qk_norm")
    if other or not config.flag("attn_temperature_tuning", True):
        raise UnsupportedModel(
            f"its attention is another than llama.cpp's (`{[*other, 'attn_temperature_tuning'][0]}`)"
        )
    return {
        **decoder.describe(config, sizes),
        **decoder.describe_experts(sizes.experts, config.count("num_experts_per_tok", 1)),
        "expert_feed_forward_length": sizes.expert,
        "interleave_moe_layer_step": sizes.step,
    }


_PLAIN = tuple(replace(known, source=known.source.replace("mlp.", "feed_forward.")) for known in decoder.GATED)
LLAMA4 = Family(
    classes=("Llama4ForCausalLM",),
    architecture="llama4",
    tensors=(
        *decoder.ENDS,
        *decoder.NORMS,
        *decoder.ATTENTION,
        *in_layers("plain", *_PLAIN),
        *in_layers(
            "routed",
            *moe.shared("feed_forward.shared_expert"),
            router("feed_forward.router"),
            *moe.turned_experts("feed_forward.experts"),
        ),
    ),
    sizes=_Llama4Sizes,
    read_sizes=_read_sizes,
    describe=_describe,
    computed=rotary.tables,
)
FAMILIES = (LLAMA4,)
