"""Relatives of Llama: Seed OSS, ERNIE 4.5, Hunyuan, Arcee, Nemotron, EXAONE 4, MiniCPM, Apertus.

Sources: `modeling_*.py` of transformers, `models/*.cpp` of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod
from typing import Any

from quant.convert.base import UNQUANTIZED, Family, Known
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, llama, rotary
from quant.convert.families.decoder import DecoderSizes, norm
from quant.convert.peeking import peek
from quant.errors import MalformedFile, UnsupportedModel
from quant.plan import Files
from quant.safetensors import Entry

SEED_OSS = Family(
    classes=("SeedOssForCausalLM",),
    architecture="seed_oss",
    tensors=(
        *decoder.BASE,
        *norm("input_layernorm", "attn_norm"),
        *norm("post_attention_layernorm", "post_attention_norm"),
    ),
    sizes=DecoderSizes,
    read_sizes=decoder.read_sizes,
    describe=decoder.describe,
)
# Rotated in pairs already, as llama.cpp wants it here.
ERNIE = Family(
    classes=("Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"),
    architecture="ernie4_5",
    tensors=decoder.STANDARD,
    sizes=DecoderSizes,
    read_sizes=decoder.read_sizes,
    describe=decoder.describe,
    prefix=r"((model|ernie)\.)?",
    tied=True,
)


def describe_hunyuan(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    """Its "dynamic" scaling with an `alpha` is a larger base, whatever the length."""
    entries = decoder.describe(config, sizes)
    alpha = rotary.parameters(config).get("alpha")
    if alpha:
        stretch = rotary.parameters(config).number("alpha")
        entries["rope.freq_base"] *= stretch ** (sizes.head / (sizes.head - 2))
    return entries


HUNYUAN_NORMS = (
    *norm("self_attn.query_layernorm", "attn_q_norm", "head"),
    *norm("self_attn.key_layernorm", "attn_k_norm", "head"),
)
HUNYUAN = Family(
    classes=("HunYuanDenseV1ForCausalLM",),
    architecture="hunyuan-dense",
    tensors=(*decoder.STANDARD, *HUNYUAN_NORMS),
    sizes=DecoderSizes,
    read_sizes=decoder.read_sizes,
    describe=describe_hunyuan,
)
_NO_GATE = tuple(known for known in decoder.GATED if "gate" not in known.target)
ARCEE = Family(
    classes=("ArceeForCausalLM",),
    architecture="arcee",
    tensors=decoder.paired((*decoder.UNGATED, *_NO_GATE)),
    sizes=DecoderSizes,
    read_sizes=decoder.read_sizes,
    describe=decoder.describe,
    computed=rotary.tables,
    activations=("relu2",),
)


def _halved(config: ModelConfig) -> ModelConfig:
    """Nemotron turns half of every head where its settings say nothing."""
    return config.filled({"partial_rotary_factor": 0.5})


NEMOTRON = Family(
    classes=("NemotronForCausalLM",),
    architecture="nemotron",
    tensors=decoder.added_one(
        (
            decoder.EMBEDDING,
            *decoder.final_norm(bias=True),
            decoder.OUTPUT,
            *decoder.ATTENTION,
            *_NO_GATE,
            *norm("input_layernorm", "attn_norm", bias=True),
            *norm("post_attention_layernorm", "ffn_norm", bias=True),
        )
    ),
    sizes=DecoderSizes,
    read_sizes=lambda config: decoder.read_sizes(_halved(config)),
    describe=lambda config, sizes: {
        **decoder.describe(config.changed({"layer_norm_eps": config.number("norm_eps", 1e-5)}), sizes),
    },
    activations=("relu2",),
)
# The only size whose windows llama.cpp knows.
_EXAONE_WINDOWS = 64


def _describe_exaone(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    """Only layers with a window are rotated, and all are in models that have none."""
    entries = decoder.describe(config, sizes)
    if config.get("sliding_window") is None:
        config.without_effect("layer_types", "sliding_window_pattern")
        return entries
    if sizes.layers != _EXAONE_WINDOWS:
        raise UnsupportedModel(f"it has windows, which llama.cpp knows for EXAONE 4 of {_EXAONE_WINDOWS} layers only")
    pattern = decoder.window_pattern(config, sizes)
    return {**entries, "attention.sliding_window": config.count("sliding_window"), **pattern}


EXAONE4 = Family(
    classes=("Exaone4ForCausalLM",),
    architecture="exaone4",
    tensors=(
        *decoder.BASE,
        *decoder.HEAD_NORMS,
        *norm("post_attention_layernorm", "post_attention_norm"),
        *norm("post_feedforward_layernorm", "post_ffw_norm"),
    ),
    sizes=DecoderSizes,
    read_sizes=decoder.read_sizes,
    describe=_describe_exaone,
    computed=rotary.tables,
)


def _describe_minicpm(config: ModelConfig, sizes: DecoderSizes) -> dict[str, Any]:
    """Scales by other names than Granite's."""
    scales = {
        "embedding_multiplier": config.number("scale_emb", 1.0),
        "residual_multiplier": config.number("scale_depth", 1.0) / sizes.layers**0.5,
        "attention_multiplier": sizes.head**-0.5,
        "logits_scaling": sizes.width / config.count("dim_model_base", 1),
    }
    return llama.describe_granite(config.changed(scales), sizes)


# llama.cpp's architecture for Granite computes the same; its own one for MiniCPM is a copy.
MINICPM = replace(llama.GRANITE, classes=("MiniCPMForCausalLM",), describe=_describe_minicpm, tied=True)
_XIELU = ("alpha_n", "alpha_p", "beta", "eps")


def _measure_xielu(files: Files, entries: Iterable[Entry], sizes: DecoderSizes) -> dict[str, Any]:
    """The four numbers of each layer's activation, which llama.cpp wants among the entries."""
    found: dict[str, float] = {}
    for entry in entries:
        _, cut, number = entry.name.partition(".act_fn.")
        if cut and entry.dtype in UNQUANTIZED and prod(entry.shape) == 1:
            layer = entry.name.split("layers.")[-1].split(".")[0]
            found[f"{number} {layer}"] = float(peek(files, entry, 0, 1)[0])
    try:
        return {f"xielu.{name}": [found[f"{name} {layer}"] for layer in range(sizes.layers)] for name in _XIELU}
    except KeyError as missing:
        raise MalformedFile(f"the weights lack a number of an activation ({missing})") from None


def _tell_xielu(entries: Mapping[str, Any], sizes: DecoderSizes) -> dict[str, float]:
    """The same numbers by their names in the source."""
    return {
        f"layers.{layer}.mlp.act_fn.{name}": float(entries[f"xielu.{name}"][layer])
        for name in _XIELU
        for layer in range(sizes.layers)
    }


APERTUS = Family(
    classes=("ApertusForCausalLM",),
    architecture="apertus",
    tensors=(
        *decoder.ENDS,
        *decoder.ATTENTION,
        *decoder.HEAD_NORMS,
        *_NO_GATE,
        *norm("attention_layernorm", "attn_norm"),
        *norm("feedforward_layernorm", "ffn_norm"),
        Known(f"{decoder.LAYER}mlp.act_fn.alpha_n", (), (1,)),
        Known(f"{decoder.LAYER}mlp.act_fn.alpha_p", (), (1,)),
        Known(f"{decoder.LAYER}mlp.act_fn.beta", (), ()),
        Known(f"{decoder.LAYER}mlp.act_fn.eps", (), ()),
    ),
    sizes=DecoderSizes,
    read_sizes=decoder.read_sizes,
    describe=decoder.describe,
    computed=rotary.tables,
    measured=_measure_xielu,
    told=_tell_xielu,
    activations=("xielu",),
)
FAMILIES = (APERTUS, SEED_OSS, ERNIE, HUNYUAN, ARCEE, NEMOTRON, EXAONE4, MINICPM)
