"""GLM 4: half of every head rotated, gate and up fused, norms before and after (the 0414 models) or only before."""

from __future__ import annotations

from quant.convert.base import HEAD, Family, Times, tensor
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, unrotated
from quant.convert.families.decoder import DecoderSizes, linear, norm
from quant.errors import UnsupportedModel

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


def _usual_chatglm(config: ModelConfig) -> ModelConfig:
    """The settings of the code that the models came with, by the names of transformers."""
    expected = {
        "add_bias_linear": False,
        "apply_residual_connection_post_layernorm": False,
        "original_rope": True,
        "post_layer_norm": True,
        "pre_seq_len": None,
        "rmsnorm": True,
    }
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise UnsupportedModel(f"it computes otherwise than llama.cpp's `chatglm` does (`{key}`)")
    config.without_effect("add_qkv_bias", "apply_query_key_layer_scaling", "attention_softmax_in_fp32", "vocab_size")
    config.without_effect("bias_dropout_fusion", "fp32_residual_connection", "interleaved_qkv", "prefix_projection")
    config.without_effect("quantization_bit", "use_cache")
    shared = config.get("multi_query_group_num") if config.flag("multi_query_attention") else None
    return unrotated.usual(
        config,
        num_hidden_layers="num_layers",
        intermediate_size="ffn_hidden_size",
        max_position_embeddings="seq_length",
        rms_norm_eps="layernorm_epsilon",
        vocab_size="padded_vocab_size",
        head_dim="kv_channels",
    ).changed(
        {
            "num_key_value_heads": shared,
            "layernorm_epsilon": None,
            "partial_rotary_factor": 0.5,
            "rope_theta": 10000.0 * config.number("rope_ratio", 1.0),
        }
    )


# GLM 4 and ChatGLM as they were first published.
CHATGLM = Family(
    classes=("ChatGLMModel", "ChatGLMForConditionalGeneration"),
    architecture="chatglm",
    tensors=(
        tensor("embedding.word_embeddings.weight", "token_embd.weight", "vocabulary", "width"),
        *decoder.final_norm("encoder.final_layernorm"),
        tensor("output_layer.weight", HEAD, "vocabulary", "width"),
        *unrotated.block(
            "encoder.layers.{}.",
            (
                *decoder.NORMS,
                *unrotated.fused("self_attention.query_key_value", bias=None),
                *linear("self_attention.dense", "attn_output", "width", "queries", bias=False),
                *linear("mlp.dense_h_to_4h", "ffn_up", Times(2, "feed_forward"), "width", bias=False),
                *linear("mlp.dense_4h_to_h", "ffn_down", "width", "feed_forward", bias=False),
            ),
        ),
    ),
    sizes=DecoderSizes,
    read_sizes=lambda config: decoder.read_sizes(_usual_chatglm(config)),
    describe=lambda config, sizes: decoder.describe(_usual_chatglm(config), sizes),
    prefix=r"(transformer\.)?",
    unused=r"rotary_pos_emb\.inv_freq",
)
FAMILIES = (GLM4, GLM, CHATGLM)
