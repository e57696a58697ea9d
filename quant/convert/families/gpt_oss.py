"""GPT-OSS: experts whose gate and up rows alternate, biases everywhere, sinks of attention, every other layer a window.

Published with its experts in MXFP4 (`prequantized.py`), which GGUF holds as they are; `transformers` also saves them
whole, and then turned. Sources: `modeling_gpt_oss.py` of transformers, `openai-moe.cpp` of llama.cpp.

llama.cpp rounds the ends of YaRN's ramp, as the method's own code does and GPT-OSS (`truncate: false`) does not.
"""

from __future__ import annotations

from typing import Any

from quant.convert import prequantized
from quant.convert.base import Family, Known, Sizes
from quant.convert.config import Config
from quant.convert.families import decoder
from quant.convert.families.decoder import layer, linear, norm
from quant.convert.transforms import EverySecondRow, EverySecondValue, TakeTransposed, Transpose
from quant.errors import UnsupportedModel
from quant.plan import Transform

_GATE, _UP, _DOWN = (f"blk.{{}}.ffn_{name}_exps" for name in ("gate", "up", "down"))
_EXPERTS = decoder.LAYER + "mlp.experts."
# What the engine's activation is made for.
_ACTIVATION = {"swiglu_limit": 7.0, "swiglu_alpha": 1.702}


def _read_sizes(config: Config) -> dict[str, int]:
    sizes = decoder.read_sizes(config)
    packed = prequantized.check_method(config) == "mxfp4"
    return {
        **sizes,
        "experts": config.count("num_local_experts"),
        "packed": sizes["layers"] if packed else 0,
        "whole": 0 if packed else sizes["layers"],
    }


def _describe(config: Config, sizes: Sizes) -> dict[str, Any]:
    odd = [key for key, value in _ACTIVATION.items() if config.number(key, value) != value]
    if odd:
        raise UnsupportedModel(f"its experts have another activation (`{odd[0]}`) than llama.cpp's for the family")
    return {
        **decoder.describe(config, sizes),
        **decoder.describe_experts(sizes["experts"], config.count("num_experts_per_tok")),
        "expert_feed_forward_length": sizes["feed_forward"],
        "attention.sliding_window": config.count("sliding_window"),
        **decoder.window_pattern(config, sizes, 2),
    }


def _transforms(sizes: Sizes) -> dict[str, Transform]:
    width, count = sizes["width"], sizes["feed_forward"]
    found: dict[str, Transform] = {"down": Transpose(width, count)}
    for first, name in enumerate(("gate", "up")):
        found[f"{name}-row"] = EverySecondRow(first)
        found[f"{name}-value"] = EverySecondValue(first)
        found[f"{name}-column"] = TakeTransposed(width, count, first, step=2)
    return found


def _stacks(
    layers: str, gate_and_up: tuple[str, ...], transform: str, down: tuple[str, ...], turned: str
) -> tuple[Known, ...]:
    """The experts of the layers that the size `layers` counts, in one of the two ways in which they are stored."""
    both, result = f"{_GATE}.weight {_UP}.weight", ("experts", "feed_forward", "width")
    return (
        Known(f"{_EXPERTS}gate_up_proj", both, gate_and_up, True, transform, result, layers=("", layers)),
        Known(
            *(f"{_EXPERTS}down_proj", f"{_DOWN}.weight", down, True, turned, ("experts", "width", "feed_forward")),
            layers=("", layers),
        ),
    )


GPT_OSS = Family(
    classes=("GptOssForCausalLM",),
    architecture="gpt-oss",
    tensors=(
        *(decoder.EMBEDDING, *decoder.final_norm(), decoder.OUTPUT, *decoder.ATTENTION),
        *norm("input_layernorm", "attn_norm"),
        *norm("post_attention_layernorm", "post_attention_norm"),
        layer("self_attn.sinks", "attn_sinks.weight", "heads"),
        *linear("mlp.router", "ffn_gate_inp", "experts", "width", bias=True),
        *_stacks(
            *("packed", ("experts", "two_feed_forward", "width"), "gate-row up-row"),
            *(("experts", "width", "feed_forward"), ""),
        ),
        *_stacks(
            *("whole", ("experts", "width", "two_feed_forward"), "gate-column up-column"),
            *(("experts", "feed_forward", "width"), "down"),
        ),
        Known(
            *(f"{_EXPERTS}gate_up_proj_bias", f"{_GATE}.bias {_UP}.bias", ("experts", "two_feed_forward")),
            *(True, "gate-value up-value", ("experts", "feed_forward")),
        ),
        Known(f"{_EXPERTS}down_proj_bias", f"{_DOWN}.bias", ("experts", "width")),
    ),
    read_sizes=_read_sizes,
    describe=_describe,
    transforms=_transforms,
)
FAMILIES = (GPT_OSS,)
