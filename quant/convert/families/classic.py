"""Older decoders after Llama's pattern, and some like them: Jais 2, XVERSE, Orion, EXAONE 3, Qwen 1, Pangu, Maincoder.

Sources: `modeling_jais2.py` of transformers, the code in the models' repositories, `models/*.cpp` of llama.cpp.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quant.convert.base import Family, tensor
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, llama, rotary, unrotated
from quant.convert.families.decoder import DecoderSizes, linear, norm
from quant.errors import UnsupportedModel

_LAYER_NORMS = (
    *norm("input_layernorm", "attn_norm", bias=True),
    *norm("post_attention_layernorm", "ffn_norm", bias=True),
)
_BIASED_ATTENTION = (
    *linear("self_attn.q_proj", "attn_q", "queries", "width", bias=True),
    *linear("self_attn.k_proj", "attn_k", "keys", "width", bias=True),
    *linear("self_attn.v_proj", "attn_v", "keys", "width", bias=True),
    *linear("self_attn.o_proj", "attn_output", "width", "queries", bias=True),
)
JAIS2 = Family(
    classes=("Jais2ForCausalLM",),
    architecture="jais2",
    tensors=(
        decoder.EMBEDDING,
        decoder.OUTPUT,
        *decoder.final_norm(bias=True),
        *_LAYER_NORMS,
        *_BIASED_ATTENTION,
        *unrotated.dense("mlp.up_proj", "mlp.down_proj", bias=True),
    ),
    sizes=DecoderSizes,
    read_sizes=decoder.read_sizes,
    describe=decoder.describe,
    activations=("relu2",),
)


def _describe_orion(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    """Its norms divide by deviations, whatever the key is called."""
    length = (
        config.get("max_sequence_length") or config.get("max_position_embeddings") or config.get("model_max_length")
    )
    entries = decoder.describe(config.changed({"max_position_embeddings": length}), sizes)
    epsilon = entries.pop("attention.layer_norm_rms_epsilon")
    return {**entries, "attention.layer_norm_epsilon": epsilon}


ORION = Family(
    classes=("OrionForCausalLM",),
    architecture="orion",
    tensors=(
        decoder.EMBEDDING,
        decoder.OUTPUT,
        *decoder.final_norm(bias=True),
        *decoder.ATTENTION,
        *decoder.GATED,
        *_LAYER_NORMS,
    ),
    sizes=DecoderSizes,
    read_sizes=decoder.read_sizes,
    describe=_describe_orion,
)
XVERSE = replace(
    llama.LLAMA,
    classes=("XverseForCausalLM",),
    architecture="xverse",
    describe=decoder.describe,
    computed=lambda config, sizes: (),
)
PANGU = Family(
    classes=("PanguEmbeddedForCausalLM",),
    architecture="pangu-embedded",
    tensors=(*decoder.ENDS, *decoder.NORMS, *decoder.GATED, *_BIASED_ATTENTION),
    sizes=DecoderSizes,
    read_sizes=decoder.read_sizes,
    describe=decoder.describe,
)
MAINCODER = Family(
    classes=("MaincoderForCausalLM",),
    architecture="maincoder",
    tensors=decoder.STANDARD + decoder.HEAD_NORMS,
    sizes=DecoderSizes,
    read_sizes=decoder.read_sizes,
    describe=decoder.describe,
)


def _usual_exaone(config: ModelConfig) -> ModelConfig:
    return unrotated.usual(
        config, num_hidden_layers="num_layers", rms_norm_eps="layer_norm_epsilon", hidden_act="activation_function"
    ).changed({"layer_norm_epsilon": None})


EXAONE = Family(
    classes=("ExaoneForCausalLM",),
    architecture="exaone",
    tensors=(
        tensor("wte.weight", "token_embd.weight", "vocabulary", "width"),
        tensor("ln_f.weight", "output_norm.weight", "width"),
        decoder.OUTPUT,
        *unrotated.block(
            "h.{}.",
            (
                *norm("ln_1", "attn_norm"),
                *norm("ln_2", "ffn_norm"),
                *linear("attn.attention.q_proj", "attn_q", "queries", "width", bias=False),
                *linear("attn.attention.k_proj", "attn_k", "keys", "width", bias=False),
                *linear("attn.attention.v_proj", "attn_v", "keys", "width", bias=False),
                *linear("attn.attention.out_proj", "attn_output", "width", "queries", bias=False),
                *linear("mlp.c_fc_0", "ffn_gate", "feed_forward", "width", bias=False),
                *linear("mlp.c_fc_1", "ffn_up", "feed_forward", "width", bias=False),
                *linear("mlp.c_proj", "ffn_down", "width", "feed_forward", bias=False),
            ),
        ),
    ),
    sizes=DecoderSizes,
    read_sizes=lambda config: decoder.read_sizes(_usual_exaone(config)),
    describe=lambda config, sizes: decoder.describe(_usual_exaone(config), sizes),
    computed=rotary.tables,
    prefix=r"(transformer\.)?",
    unused=r"rotary\.inv_freq|h\.\d+\.attn\.attention\.rotary\.inv_freq",
)


def _usual_qwen(config: ModelConfig) -> ModelConfig:
    for key, value in (("no_bias", True), ("scale_attn_weights", True), ("use_dynamic_ntk", True)):
        if config.get(key, value) != value:
            raise UnsupportedModel(f"it computes otherwise than llama.cpp's `qwen` does (`{key}`)")
    # Both change texts longer than the trained length alone.
    config.without_effect("use_logn_attn", "bf16", "fp16", "fp32", "kv_channels", "onnx_safe", "rotary_pct")
    config.without_effect("use_cache_quantization", "use_cache_kernel", "softmax_in_fp32", "rotary_emb_base")
    usual = unrotated.usual(config, max_position_embeddings="seq_length", rope_theta="rotary_emb_base")
    return usual.changed(
        {
            "num_key_value_heads": None,
            # Half of it is the gate's.
            "intermediate_size": usual.count("intermediate_size") // 2,
            "rms_norm_eps": config.number("layer_norm_epsilon", 1e-6),
            "layer_norm_epsilon": None,
        }
    )


def _describe_qwen(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    return {**decoder.describe(_usual_qwen(config), sizes), "feed_forward_length": 2 * sizes.feed_forward}


QWEN = Family(
    classes=("QWenLMHeadModel",),
    architecture="qwen",
    tensors=(
        tensor("wte.weight", "token_embd.weight", "vocabulary", "width"),
        tensor("ln_f.weight", "output_norm.weight", "width"),
        decoder.OUTPUT,
        *unrotated.block(
            "h.{}.",
            (
                *norm("ln_1", "attn_norm"),
                *norm("ln_2", "ffn_norm"),
                *unrotated.fused("attn.c_attn", bias=True),
                *linear("attn.c_proj", "attn_output", "width", "queries", bias=False),
                *linear("mlp.w2", "ffn_gate", "feed_forward", "width", bias=False),
                *linear("mlp.w1", "ffn_up", "feed_forward", "width", bias=False),
                *linear("mlp.c_proj", "ffn_down", "width", "feed_forward", bias=False),
            ),
        ),
    ),
    sizes=DecoderSizes,
    read_sizes=lambda config: decoder.read_sizes(_usual_qwen(config)),
    describe=_describe_qwen,
    prefix=r"(transformer\.)?",
    unused=r"rotary_emb\.inv_freq",
)
FAMILIES = (JAIS2, ORION, XVERSE, PANGU, MAINCODER, EXAONE, QWEN)
