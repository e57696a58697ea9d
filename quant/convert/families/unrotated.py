"""Decoders with GPT's names, most of them without rotary embedding: Falcon, BLOOM, MPT, StarCoder 1.

Sources: `modeling_*.py` of transformers, `models/*.cpp` of llama.cpp.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quant.convert.base import Family, Known, choices, tensor
from quant.convert.config import ModelConfig
from quant.convert.families import decoder
from quant.convert.families.decoder import DecoderSizes, linear, norm
from quant.convert.reordering import TakeBlocks
from quant.convert.transforms import Ungroup
from quant.errors import UnsupportedModel
from quant.plan import Reversible


def block(at: str, rows: tuple[Known, ...]) -> tuple[Known, ...]:
    """The rows with another beginning of their names than `layers.{}.`."""
    return tuple(replace(row, source=row.source.replace("layers.{}.", at, 1)) for row in rows)


def dense(up: str, down: str, bias: bool | None) -> tuple[Known, ...]:
    """A feed-forward part without a gate."""
    return (
        *linear(up, "ffn_up", "feed_forward", "width", bias=bias),
        *linear(down, "ffn_down", "width", "feed_forward", bias=bias),
    )


def usual(config: ModelConfig, **names: str) -> ModelConfig:
    """The settings that have other names in this class by the usual names, and the usual width behind the attention."""
    found = {usual: config.get(name) for usual, name in names.items()}
    config = config.changed({usual: value for usual, value in found.items() if value is not None})
    return config.filled({"intermediate_size": 4 * config.count("hidden_size")})


def _usual_falcon(config: ModelConfig) -> ModelConfig:
    """One key head for all, or some where the blocks are of the newer kind, or one for each."""
    named = usual(
        config, num_attention_heads="n_head", num_hidden_layers="n_layer", intermediate_size="ffn_hidden_size"
    )
    newer, one = config.flag("new_decoder_architecture"), config.flag("multi_query", True)
    if config.flag("alibi") or not (newer or config.flag("parallel_attn", True)):
        raise UnsupportedModel("it has no rotary embedding, or serial blocks, which llama.cpp's `falcon` does not know")
    if not newer and not one:
        raise UnsupportedModel("each of its heads has keys of its own, which llama.cpp's `falcon` does not know")
    # The tensors tell how many norms there are.
    config.without_effect("multi_query", "parallel_attn", "num_kv_heads", "num_ln_in_parallel_attn")
    shared = config.get("num_kv_heads") or config.get("n_head_kv") if newer else 1
    return named.changed({"num_key_value_heads": shared})


def _by_group(sizes: DecoderSizes) -> Reversible | None:
    """All queries, all keys, all values, of rows that lie together with the key head that they share."""
    if sizes.key_heads == 1:
        return None
    queries, head = sizes.queries // sizes.key_heads, sizes.head
    blocks = ((0, queries), (queries, head), (queries + head, head))
    return TakeBlocks(sizes.width, queries + 2 * head, blocks)


def fused(source: str, bias: bool | None = False) -> tuple[Known, ...]:
    """Queries, keys and values in one matrix."""
    return linear(source, "attn_qkv", "attention", "width", bias=bias)


FALCON = Family(
    classes=("FalconForCausalLM", "RWForCausalLM"),
    architecture="falcon",
    tensors=(
        tensor("word_embeddings.weight", "token_embd.weight", "vocabulary", "width"),
        decoder.OUTPUT,
        *decoder.final_norm("ln_f", bias=True),
        *block(
            "h.{}.",
            (
                *choices(
                    one=norm("input_layernorm", "attn_norm", bias=True),
                    two=(*norm("ln_mlp", "attn_norm", bias=True), *norm("ln_attn", "attn_norm_2", bias=True)),
                ),
                *(row.transformed(_by_group) for row in fused("self_attention.query_key_value")),
                *linear("self_attention.dense", "attn_output", "width", "queries", bias=False),
                *dense("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", bias=False),
            ),
        ),
    ),
    sizes=DecoderSizes,
    read_sizes=lambda config: decoder.read_sizes(_usual_falcon(config)),
    describe=lambda config, sizes: decoder.describe(_usual_falcon(config), sizes),
    prefix=r"(transformer\.)?",
    activations=("gelu",),
    tied=True,
)


def plain(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    """The entries of a decoder that does not rotate."""
    entries = decoder.describe(config, sizes)
    return {key: value for key, value in entries.items() if not key.startswith("rope.")}


def _usual_bloom(config: ModelConfig) -> ModelConfig:
    if config.flag("apply_residual_connection_post_layernorm"):
        raise UnsupportedModel("it adds what comes out of its norms, and llama.cpp's `bloom` what goes into them")
    config.without_effect("slow_but_exact")
    return usual(
        config,
        hidden_size="n_embed",
        num_attention_heads="n_head",
        num_hidden_layers="n_layer",
        max_position_embeddings="seq_length",
    )


BLOOM = Family(
    classes=("BloomForCausalLM", "BloomModel"),
    architecture="bloom",
    tensors=(
        tensor("word_embeddings.weight", "token_embd.weight", "vocabulary", "width"),
        tensor("word_embeddings_layernorm.weight", "token_embd_norm.weight", "width"),
        tensor("word_embeddings_layernorm.bias", "token_embd_norm.bias", "width"),
        decoder.OUTPUT,
        *decoder.final_norm("ln_f", bias=True),
        *block(
            "h.{}.",
            (
                *norm("input_layernorm", "attn_norm", bias=True),
                *norm("post_attention_layernorm", "ffn_norm", bias=True),
                *(
                    row.transformed(lambda sizes: Ungroup(sizes.heads, sizes.head))
                    for row in fused("self_attention.query_key_value", bias=True)
                ),
                *linear("self_attention.dense", "attn_output", "width", "queries", bias=True),
                *dense("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", bias=True),
            ),
        ),
    ),
    sizes=DecoderSizes,
    read_sizes=lambda config: decoder.read_sizes(_usual_bloom(config)),
    describe=lambda config, sizes: plain(_usual_bloom(config), sizes),
    prefix=r"(transformer\.)?",
    tied=True,
    activations=("gelu", "gelu_pytorch_tanh"),
)


def _usual_mpt(config: ModelConfig) -> ModelConfig:
    attention = config.part("attn_config")
    for place, key, expected in (
        (attention, "qk_ln", False),
        (attention, "prefix_lm", False),
        (attention, "softmax_scale", None),
        (attention, "attn_uses_sequence_id", False),
        (attention, "alibi", True),
        (config, "logit_scale", None),
    ):
        if place.get(key, expected) != expected:
            raise UnsupportedModel(f"it computes otherwise than llama.cpp's `mpt` does (`{key}`)")
    config.without_effect("emb_pdrop", "verbose", "no_bias", "learned_pos_emb", "init_device", "use_cache", "norm_type")
    named = usual(
        config,
        hidden_size="d_model",
        num_attention_heads="n_heads",
        num_hidden_layers="n_layers",
        max_position_embeddings="max_seq_len",
    )
    wide = int(config.number("expansion_ratio", 4) * named.count("hidden_size"))
    return named.changed({"intermediate_size": wide, "num_key_value_heads": attention.get("kv_n_heads")})


def _describe_mpt(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    attention = config.part("attn_config")
    clip = attention.get("clip_qkv")
    return {
        **plain(_usual_mpt(config), sizes),
        "attention.layer_norm_epsilon": config.number("layer_norm_epsilon", 1e-5),
        "attention.max_alibi_bias": attention.number("alibi_bias_max", 8),
        **({} if clip is None else {"attention.clamp_kqv": attention.number("clip_qkv")}),
    }


MPT = Family(
    classes=("MptForCausalLM", "MPTForCausalLM"),
    architecture="mpt",
    tensors=(
        tensor("wte.weight", "token_embd.weight", "vocabulary", "width"),
        decoder.OUTPUT,
        tensor("norm_f.weight", "output_norm.weight", "width"),
        *block(
            "blocks.{}.",
            (
                *norm("norm_1", "attn_norm"),
                *norm("norm_2", "ffn_norm"),
                *fused("attn.Wqkv"),
                *linear("attn.out_proj", "attn_output", "width", "queries", bias=False),
                *dense("ffn.up_proj", "ffn.down_proj", bias=False),
            ),
        ),
    ),
    sizes=DecoderSizes,
    read_sizes=lambda config: decoder.read_sizes(_usual_mpt(config)),
    describe=_describe_mpt,
    prefix=r"(transformer\.)?",
    activations=("gelu",),
    tied=True,
)


def _usual_bigcode(config: ModelConfig) -> ModelConfig:
    if not config.flag("multi_query", True) or not config.flag("scale_attn_weights", True):
        raise UnsupportedModel(
            "its heads do not share one key head, or attend unscaled, unlike llama.cpp's `starcoder`"
        )
    config.without_effect("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32")
    named = usual(
        config,
        hidden_size="n_embd",
        num_attention_heads="n_head",
        num_hidden_layers="n_layer",
        max_position_embeddings="n_positions",
        intermediate_size="n_inner",
    )
    return named.changed({"num_key_value_heads": 1})


GPT_BIGCODE = Family(
    classes=("GPTBigCodeForCausalLM",),
    architecture="starcoder",
    tensors=(
        tensor("wte.weight", "token_embd.weight", "vocabulary", "width"),
        tensor("wpe.weight", "position_embd.weight", "positions", "width"),
        decoder.OUTPUT,
        *decoder.final_norm("ln_f", bias=True),
        *block(
            "h.{}.",
            (
                *norm("ln_1", "attn_norm", bias=True),
                *norm("ln_2", "ffn_norm", bias=True),
                *fused("attn.c_attn", bias=True),
                *linear("attn.c_proj", "attn_output", "width", "queries", bias=True),
                *dense("mlp.c_fc", "mlp.c_proj", bias=True),
            ),
        ),
    ),
    sizes=decoder.PlacedSizes,
    read_sizes=lambda config: decoder.placed(_usual_bigcode(config)),
    describe=lambda config, sizes: plain(_usual_bigcode(config), sizes),
    prefix=r"(transformer\.)?",
    unused=r"h\.\d+\.attn\.(bias|masked_bias)",
    activations=("gelu_pytorch_tanh", "gelu"),
    tied=True,
)
FAMILIES = (FALCON, BLOOM, MPT, GPT_BIGCODE)
