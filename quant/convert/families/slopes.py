"""Decoders with GPT's names and a gate that tell positions by a bias by distance (ALiBi): Refact, JAIS.

Sources: the code in the models' repositories, `refact.cpp` and `jais.cpp` of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import log2
from typing import Any

from quant.convert.base import HEAD, UNQUANTIZED, Family, tensor
from quant.convert.config import ModelConfig
from quant.convert.families import decoder
from quant.convert.families.decoder import DecoderSizes, halves, linear, norm, transposed
from quant.convert.families.unrotated import block, plain, usual
from quant.convert.peeking import peek
from quant.convert.transforms import Scale
from quant.errors import UnsupportedModel
from quant.plan import Files
from quant.safetensors import Entry

# The feed-forward part of Refact is a multiple of this wide.
_STEP = 256
_GPT = {
    "hidden_size": "n_embd",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
    "max_position_embeddings": "n_positions",
    "intermediate_size": "n_inner",
}


def _usual_refact(config: ModelConfig) -> ModelConfig:
    if not config.flag("multi_query", True) or not config.flag("scale_attn_weights", True):
        raise UnsupportedModel("its heads do not share one key head, or attend unscaled, unlike llama.cpp's `refact`")
    config.without_effect("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32", "attention_bias_in_fp32")
    config.without_effect("do_sample", "n_inner", "activation_function", "layer_norm_epsilon", "n_ctx")
    named = usual(config, **{key: name for key, name in _GPT.items() if name != "n_inner"})
    wide = -(-int(8 * named.count("hidden_size") / 3) // _STEP) * _STEP
    epsilon = config.number("layer_norm_epsilon", 1e-5)
    return named.changed(
        {"intermediate_size": wide, "num_key_value_heads": 1, "rms_norm_eps": epsilon, "layer_norm_epsilon": None}
    )


REFACT = Family(
    classes=("GPTRefactForCausalLM",),
    architecture="refact",
    tensors=(
        tensor("wte.weight", "token_embd.weight", "vocabulary", "width"),
        tensor("ln_f.weight", "output_norm.weight", "width"),
        decoder.OUTPUT,
        *block(
            "h.{}.",
            (
                *norm("ln_1", "attn_norm"),
                *norm("ln_2", "ffn_norm"),
                *linear("attn.q", "attn_q", "queries", "width", bias=False),
                halves("attn.kv", "keys", "attn_k", "attn_v"),
                *linear("attn.c_proj", "attn_output", "width", "queries", bias=False),
                halves("mlp.gate_up_proj", "feed_forward", "ffn_gate", "ffn_up"),
                *linear("mlp.c_proj", "ffn_down", "width", "feed_forward", bias=False),
            ),
        ),
    ),
    sizes=DecoderSizes,
    read_sizes=lambda config: decoder.read_sizes(_usual_refact(config)),
    describe=lambda config, sizes: plain(_usual_refact(config), sizes),
    prefix=r"(transformer\.)?",
    unused=r"h\.\d+\.attn\.(bias|masked_bias)",
    activations=("silu",),
)


@dataclass(frozen=True, kw_only=True)
class _JaisSizes(DecoderSizes):
    """The numbers by which the embedding and the output are multiplied."""

    embedded: float
    put_out: float


def _usual_jais(config: ModelConfig) -> ModelConfig:
    expected = {"position_embedding_type": "alibi", "scale_attn_weights": True, "reorder_and_upcast_attn": False}
    wrong = [key for key, value in expected.items() if config.get(key, value) != value]
    by_size = config.flag("mup_scale_qk_dot_by_d", config.flag("scale_qk_dot_by_d"))
    if wrong or config.flag("scale_attn_by_inverse_layer_idx") or not by_size:
        raise UnsupportedModel(
            f"it computes otherwise than llama.cpp's `jais` does (`{[*wrong, 'mup_scale_qk_dot_by_d'][0]}`)"
        )
    config.without_effect("scale_qk_dot_by_d", "alibi_scaling", "n_ctx")
    return usual(config, **_GPT)


def _read_jais_sizes(config: ModelConfig) -> _JaisSizes:
    sizes = decoder.read_sizes(_usual_jais(config))
    scale = config.get("mup_embeddings_scale", config.get("embeddings_scale"))
    embedded = config.number(
        "embeddings_scale" if config.get("mup_embeddings_scale") is None else "mup_embeddings_scale"
    )
    if config.get("mup_output_alpha") is not None:
        put_out = config.number("mup_output_alpha") * config.number("mup_width_scale")
    else:
        put_out = config.number("width_scale")
    config.without_effect("mup_embeddings_scale", "embeddings_scale", "width_scale")
    if not scale or not put_out:
        raise UnsupportedModel("it multiplies its embedding or its output by 0")
    return _JaisSizes(**vars(sizes), embedded=embedded, put_out=put_out)


def _measure_slopes(files: Files, entries: Iterable[Entry], sizes: _JaisSizes) -> dict[str, Any]:
    """The largest bias, by the slope of the first head."""
    steepest = 8.0
    for entry in entries:
        if entry.name.endswith("relative_pe.slopes") and entry.dtype in UNQUANTIZED:
            first = float(peek(files, entry, 0, 1).reshape(-1)[0])
            if not 0 < first < 1:
                raise UnsupportedModel("its bias by distance grows with it, and llama.cpp's falls")
            steepest = float(-round(log2(first) * 2 ** int(log2(sizes.heads))))
    return {"jais.attention.max_alibi_bias": steepest}


JAIS = Family(
    classes=("JAISLMHeadModel",),
    architecture="jais",
    tensors=(
        tensor(
            "wte.weight",
            "token_embd.weight",
            "vocabulary",
            "width",
            transform=lambda sizes: Scale(sizes.embedded),
        ),
        tensor("lm_head.weight", HEAD, "vocabulary", "width", transform=lambda sizes: Scale(sizes.put_out)),
        *decoder.final_norm("ln_f", bias=True),
        *block(
            "h.{}.",
            (
                *norm("ln_1", "attn_norm", bias=True),
                *norm("ln_2", "ffn_norm", bias=True),
                *transposed("attn.c_attn", "attn_qkv", "attention", "width"),
                *transposed("attn.c_proj", "attn_output", "width", "queries"),
                *transposed("mlp.c_fc", "ffn_up", "feed_forward", "width"),
                *transposed("mlp.c_fc2", "ffn_gate", "feed_forward", "width"),
                *transposed("mlp.c_proj", "ffn_down", "width", "feed_forward"),
            ),
        ),
    ),
    sizes=_JaisSizes,
    read_sizes=_read_jais_sizes,
    describe=lambda config, sizes: plain(_usual_jais(config), sizes),
    measured=_measure_slopes,
    prefix=r"(transformer\.)?",
    unused=r"relative_pe\.slopes|h\.\d+\.attn\.(bias|masked_bias)",
    activations=("swiglu",),
    tied=True,
)
FAMILIES = (REFACT, JAIS)
