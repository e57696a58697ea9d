"""GPT-OSS: experts whose gate and up rows alternate, biases everywhere, sinks of attention, every other layer a window.

Published with its experts in MXFP4 (`prequantized/floats.py`), which GGUF holds as they are; `transformers` also saves
them whole, and then turned. Sources: `modeling_gpt_oss.py` of transformers, `openai-moe.cpp` of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quant.convert.base import Family, Known, Layers, Target, Times, in_layers
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, moe
from quant.convert.families.decoder import layer, linear, norm
from quant.convert.families.moe import MixtureSizes
from quant.convert.prequantized.methods import method_of
from quant.convert.transforms import EverySecondRow, EverySecondValue, TakeTransposed
from quant.errors import UnsupportedModel
from quant.plan import Reversible

_EXPERTS = decoder.LAYER + "mlp.experts."
# The engine's activation has these built in.
_ACTIVATION = {"swiglu_limit": 7.0, "swiglu_alpha": 1.702}


@dataclass(frozen=True, kw_only=True)
class _GptOssSizes(MixtureSizes):
    """All layers have `packed` experts (MXFP4), or all have `whole` ones."""

    packed: Layers
    whole: Layers


def _read_sizes(config: ModelConfig) -> _GptOssSizes:
    sizes = decoder.read_sizes(config)
    every: Layers = frozenset(range(sizes.layers))
    packed = every if method_of(config).name == "mxfp4" else frozenset()
    return _GptOssSizes(
        **vars(sizes),
        experts=config.count("num_local_experts"),
        expert=sizes.feed_forward,
        packed=packed,
        whole=every - packed,
    )


def _describe(config: ModelConfig, sizes: _GptOssSizes) -> dict[str, Any]:
    odd = [key for key, value in _ACTIVATION.items() if config.number(key, value) != value]
    if odd:
        raise UnsupportedModel(f"its experts have another activation (`{odd[0]}`) than llama.cpp's for the family")
    if not config.flag("attention_bias", True):
        raise UnsupportedModel(
            "its attention has no biases (`attention_bias`), and llama.cpp needs them in this family"
        )
    return {
        **decoder.describe(config, sizes),
        **decoder.describe_experts(sizes.experts, config.count("num_experts_per_tok")),
        "expert_feed_forward_length": sizes.expert,
        **decoder.windows(config, sizes, every=2),
    }


def _take_columns(first: int) -> Callable[[_GptOssSizes], Reversible]:
    return lambda sizes: TakeTransposed(sizes.width, sizes.expert, first, step=2)


# Gate and up alternate: gate is every second one from number 0, up from number 1.
_MATRIX = ("experts", "expert", "width")
_PACKED_EXPERTS = (
    Known(
        _EXPERTS + "gate_up_proj",
        (
            Target("blk.{}.ffn_gate_exps.weight", _MATRIX, lambda sizes: EverySecondRow(0)),
            Target("blk.{}.ffn_up_exps.weight", _MATRIX, lambda sizes: EverySecondRow(1)),
        ),
        ("experts", Times(2, "expert"), "width"),
    ),
    layer("mlp.experts.down_proj", "ffn_down_exps.weight", "experts", "width", "expert"),
)
_WHOLE_EXPERTS = (
    Known(
        _EXPERTS + "gate_up_proj",
        (
            Target("blk.{}.ffn_gate_exps.weight", _MATRIX, _take_columns(0)),
            Target("blk.{}.ffn_up_exps.weight", _MATRIX, _take_columns(1)),
        ),
        ("experts", "width", Times(2, "expert")),
    ),
    moe.turned_down("mlp.experts"),
)
_BIASES = (
    Known(
        _EXPERTS + "gate_up_proj_bias",
        (
            Target("blk.{}.ffn_gate_exps.bias", ("experts", "expert"), lambda sizes: EverySecondValue(0)),
            Target("blk.{}.ffn_up_exps.bias", ("experts", "expert"), lambda sizes: EverySecondValue(1)),
        ),
        ("experts", Times(2, "expert")),
    ),
    layer("mlp.experts.down_proj_bias", "ffn_down_exps.bias", "experts", "width"),
)
GPT_OSS = Family(
    classes=("GptOssForCausalLM",),
    architecture="gpt-oss",
    tensors=(
        *decoder.ENDS,
        *decoder.ATTENTION,
        *norm("input_layernorm", "attn_norm"),
        *norm("post_attention_layernorm", "post_attention_norm"),
        layer("self_attn.sinks", "attn_sinks.weight", "heads"),
        *linear("mlp.router", "ffn_gate_inp", "experts", "width", bias=True),
        *in_layers("packed", *_PACKED_EXPERTS),
        *in_layers("whole", *_WHOLE_EXPERTS),
        *_BIASES,
    ),
    sizes=_GptOssSizes,
    read_sizes=_read_sizes,
    describe=_describe,
)
FAMILIES = (GPT_OSS,)
