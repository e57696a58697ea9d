"""GPT-2, GPT-NeoX (Pythia), StarCoder 2, CodeShell and StableLM: layer norms, most of them with biases."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from quant.convert.base import Family, Known, Sizes, Times, count_layers, switched, tensor
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, unrotated
from quant.convert.families.decoder import DecoderSizes, layer, linear, norm, transposed
from quant.convert.families.unrotated import block
from quant.convert.transforms import Ungroup
from quant.errors import UnsupportedModel
from quant.plan import Reversible

_NORMS = (
    *norm("input_layernorm", "attn_norm", bias=True),
    *norm("post_attention_layernorm", "ffn_norm", bias=True),
)
STARCODER2 = Family(
    classes=("Starcoder2ForCausalLM",),
    architecture="starcoder2",
    tensors=(
        decoder.EMBEDDING,
        *decoder.final_norm(bias=True),
        decoder.OUTPUT,
        *_NORMS,
        *switched(
            "use_bias",
            *decoder.ATTENTION,
            *linear("mlp.c_fc", "ffn_up", "feed_forward", "width", bias=True),
            *linear("mlp.c_proj", "ffn_down", "width", "feed_forward", bias=True),
        ),
    ),
    sizes=DecoderSizes,
    read_sizes=decoder.read_sizes,
    describe=lambda config, sizes: decoder.bounded_by_window(config, decoder.describe(config, sizes)),
    activations=("gelu_pytorch_tanh", "gelu"),
    tied=True,
)


def _head_norms(kind: str, count: str) -> Known:
    """A norm for each head, stacked; only the larger models have them."""
    row = layer(f"self_attn.{kind}_layernorm.norms.[].weight", f"attn_{kind}_norm.weight", "head", required=False)
    return replace(row, stack=count)


STABLELM = Family(
    classes=("StableLmForCausalLM", "StableLMEpochForCausalLM"),
    architecture="stablelm",
    tensors=(
        decoder.EMBEDDING,
        *decoder.final_norm(bias=True),
        decoder.OUTPUT,
        *decoder.ATTENTION,
        *decoder.GATED,
        *(replace(known, required="ffn" not in known.target) for known in _NORMS),
        _head_norms("q", "heads"),
        _head_norms("k", "key_heads"),
    ),
    sizes=DecoderSizes,
    read_sizes=decoder.read_sizes,
    describe=decoder.describe,
)


def _describe_neox(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    parallel = config.flag("use_parallel_residual", True)
    return {**decoder.describe(config, sizes), "use_parallel_residual": parallel}


def _ungroup(sizes: DecoderSizes) -> Reversible:
    return Ungroup(sizes.heads, sizes.head)


GPT_NEOX = Family(
    classes=("GPTNeoXForCausalLM",),
    architecture="gptneox",
    tensors=(
        tensor("embed_in.weight", "token_embd.weight", "vocabulary", "width"),
        tensor("embed_out.weight", "output.weight", "vocabulary", "width"),
        *decoder.final_norm("final_layer_norm", bias=True),
        *_NORMS,
        *switched(
            "attention_bias",
            *(
                known.transformed(_ungroup)
                for known in linear("attention.query_key_value", "attn_qkv", "attention", "width", bias=True)
            ),
            *linear("attention.dense", "attn_output", "width", "queries", bias=True),
        ),
        *linear("mlp.dense_h_to_4h", "ffn_up", "feed_forward", "width", bias=True),
        *linear("mlp.dense_4h_to_h", "ffn_down", "width", "feed_forward", bias=True),
    ),
    sizes=DecoderSizes,
    read_sizes=decoder.read_sizes,
    describe=_describe_neox,
    prefix=r"(gpt_neox\.)?",
    unused=r"layers\.\d+\.attention\.(bias|masked_bias|rotary_emb\.inv_freq)",
    activations=("gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh"),
)


@dataclass(frozen=True, kw_only=True)
class _Gpt2Sizes(Sizes):
    heads: int
    feed_forward: int
    positions: int


def _read_gpt2_sizes(config: ModelConfig) -> _Gpt2Sizes:
    width, heads = config.count("n_embd"), config.count("n_head")
    if config.flag("scale_attn_by_inverse_layer_idx") or not config.flag("scale_attn_weights", True):
        raise UnsupportedModel("it scales attention in a way that llama.cpp does not know")
    return _Gpt2Sizes(
        vocabulary=config.count("vocab_size"),
        width=width,
        layers=count_layers(config, "n_layer"),
        heads=heads,
        feed_forward=config.count("n_inner", 4 * width),
        positions=config.count("n_positions"),
    )


def _describe_gpt2(config: ModelConfig, sizes: _Gpt2Sizes) -> dict[str, Any]:
    return {
        "vocab_size": sizes.vocabulary,
        "context_length": sizes.positions,
        "embedding_length": sizes.width,
        "block_count": sizes.layers,
        "feed_forward_length": sizes.feed_forward,
        "attention.head_count": sizes.heads,
        "attention.layer_norm_epsilon": config.number("layer_norm_epsilon", 1e-5),
    }


GPT2 = Family(
    classes=("GPT2LMHeadModel",),
    architecture="gpt2",
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
                *transposed("attn.c_attn", "attn_qkv", Times(3, "width"), "width"),
                *transposed("attn.c_proj", "attn_output", "width", "width"),
                *transposed("mlp.c_fc", "ffn_up", "feed_forward", "width"),
                *transposed("mlp.c_proj", "ffn_down", "width", "feed_forward"),
            ),
        ),
    ),
    sizes=_Gpt2Sizes,
    read_sizes=_read_gpt2_sizes,
    describe=_describe_gpt2,
    prefix=r"(transformer\.)?",
    unused=r"h\.\d+\.attn\.(bias|masked_bias)",
    activations=("gelu_new", "gelu", "gelu_fast", "gelu_pytorch_tanh"),
    tied=True,
)


def _usual_codeshell(config: ModelConfig) -> ModelConfig:
    expected = {"position_embedding_type": "rope", "scale_attn_weights": True}
    wrong = [key for key, value in expected.items() if config.get(key, value) != value]
    if wrong:
        raise UnsupportedModel(f"it computes otherwise than llama.cpp's `codeshell` does (`{wrong[0]}`)")
    config.without_effect("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "n_ctx", "num_query_groups")
    usual = unrotated.usual(
        config,
        hidden_size="n_embd",
        num_attention_heads="n_head",
        num_hidden_layers="n_layer",
        max_position_embeddings="n_positions",
        intermediate_size="n_inner",
    )
    shared = config.count("num_query_groups") if config.flag("group_query_attention", True) else None
    return usual.changed({"num_key_value_heads": shared})


CODESHELL = Family(
    classes=("CodeShellForCausalLM",),
    architecture="codeshell",
    tensors=(
        tensor("wte.weight", "token_embd.weight", "vocabulary", "width"),
        decoder.OUTPUT,
        *decoder.final_norm("ln_f", bias=True),
        *block(
            "h.{}.",
            (
                *norm("ln_1", "attn_norm", bias=True),
                *norm("ln_2", "ffn_norm", bias=True),
                *unrotated.fused("attn.c_attn", bias=True),
                *linear("attn.c_proj", "attn_output", "width", "queries", bias=True),
                *unrotated.dense("mlp.c_fc", "mlp.c_proj", bias=True),
            ),
        ),
    ),
    sizes=DecoderSizes,
    read_sizes=lambda config: decoder.read_sizes(_usual_codeshell(config)),
    describe=lambda config, sizes: decoder.describe(_usual_codeshell(config), sizes),
    prefix=r"(transformer\.)?",
    unused=r"h\.\d+\.attn\.(bias|masked_bias|rotary_emb\.inv_freq)",
    activations=("gelu_pytorch_tanh", "gelu_new", "gelu"),
    tied=True,
)
FAMILIES = (GPT2, GPT_NEOX, STARCODER2, CODESHELL, STABLELM)
