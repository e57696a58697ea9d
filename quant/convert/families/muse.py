"""Muse Glimmer: windows in three of four layers, which alone are rotated, and a gate behind the attention.

Sources: `modeling_muse_glimmer.py` of transformers, `muse-glimmer.cpp` of llama.cpp.
"""

from __future__ import annotations

import struct
from typing import Any

from quant.convert.base import Family
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, rotary
from quant.convert.families.decoder import DecoderSizes, linear, norm
from quant.convert.transforms import AddOne
from quant.errors import UnsupportedModel
from quant.plan import TensorPlan

# llama.cpp's norms behind a part add the first to the variance; queries and logits are multiplied by the others.
_BEHIND, _SHARPER, _PUT_OUT = 1e-8, 3.87, 0.19611613513818404


def _describe(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    # Each fourth layer from the last on sees all where nothing else is said.
    usual = [("sliding" if (sizes.layers - 1 - n) % 4 else "full") + "_attention" for n in range(sizes.layers)]
    given, bases = config.get("layer_types"), config.get("layer_rope_theta")
    pattern = decoder.windows(config.changed({"layer_types": usual if given is None else given}), sizes)
    base = rotary.base(config, default=10000.0)
    wanted = [base if sliding else 0 for sliding in pattern["attention.sliding_window_pattern"]]
    if bases is not None and bases != wanted:
        raise UnsupportedModel("its layers with a window are not those that are rotated, as in llama.cpp")
    if rotary.kind_of(rotary.parameters(config)) not in ("default", "dynamic"):
        raise UnsupportedModel("its rotation is scaled, which llama.cpp has not for this kind of model")
    if config.number("post_norm_eps", _BEHIND) != _BEHIND:
        raise UnsupportedModel(f"its `post_norm_eps` is not {_BEHIND}, the only one that llama.cpp knows")
    return {
        **decoder.describe(config, sizes),
        **pattern,
        "final_logit_softcapping": decoder.scale(config, "final_logit_softcapping", 20.0),
        "logit_scale": config.number("output_multiplier", _PUT_OUT),
    }


def _norms_of_heads(config: ModelConfig, sizes: DecoderSizes) -> tuple[TensorPlan, ...]:
    """The norms of queries and keys, which have no weights: the factor of the queries, and ones."""
    sharper = config.number("qk_scale_factor", _SHARPER)

    def table(name: str, value: float) -> TensorPlan:
        return TensorPlan(name, (sizes.head,), "F32", values=struct.pack(f"<{sizes.head}f", *[value] * sizes.head))

    return tuple(
        table(f"blk.{layer}.attn_{kind}_norm.weight", value)
        for layer in range(sizes.layers)
        for kind, value in (("q", sharper), ("k", 1.0))
    )


MUSE = Family(
    classes=("MuseGlimmerTextModel",),
    architecture="muse-glimmer",
    tensors=(
        *decoder.ENDS,
        *decoder.paired(decoder.ATTENTION),
        *linear("self_attn.gate_proj", "attn_gate", "queries", "width", bias=False),
        *decoder.GATED,
        *(
            row.transformed(lambda sizes: AddOne())
            for row in (
                *norm("input_layernorm", "attn_norm"),
                *norm("post_attention_layernorm", "post_attention_norm"),
                *norm("pre_feedforward_layernorm", "ffn_norm"),
                *norm("post_feedforward_layernorm", "post_ffw_norm"),
            )
        ),
    ),
    sizes=DecoderSizes,
    read_sizes=decoder.read_sizes,
    describe=_describe,
    computed=_norms_of_heads,
)
FAMILIES = (MUSE,)
