"""GLM 4: half of every head rotated, gate and up fused, norms before and after (the 0414 models) or only before."""

from __future__ import annotations

from quant.convert.base import Family
from quant.convert.config import ModelConfig
from quant.convert.families import decoder
from quant.convert.families.decoder import DecoderSizes, norm

_BASE = (*decoder.ENDS, *decoder.ATTENTION, *decoder.FUSED_GATED)


def _read_sizes(config: ModelConfig) -> DecoderSizes:
    return decoder.read_sizes(config.filled({"partial_rotary_factor": 0.5}))


GLM4 = Family(
    classes=("Glm4ForCausalLM",),
    architecture="glm4",
    tensors=(
        *_BASE,
        *norm("input_layernorm", "attn_norm"),
        *norm("post_self_attn_layernorm", "post_attention_norm"),
        *norm("post_attention_layernorm", "ffn_norm"),
        *norm("post_mlp_layernorm", "post_ffw_norm"),
    ),
    sizes=DecoderSizes,
    read_sizes=_read_sizes,
    describe=decoder.describe,
)
GLM = Family(
    classes=("GlmForCausalLM",),
    architecture="chatglm",
    tensors=_BASE + decoder.NORMS,
    sizes=DecoderSizes,
    read_sizes=_read_sizes,
    describe=decoder.describe,
)
FAMILIES = (GLM4, GLM)
