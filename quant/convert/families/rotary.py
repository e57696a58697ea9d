"""Rotary position embedding: what `config.json` says of it, as GGUF entries and tensors.

Sources: `modeling_rope_utils.py` of transformers, `llama-hparams` and `ggml_rope_ext` of llama.cpp.
"""

from __future__ import annotations

import math
import struct
from typing import Any, Protocol

from quant.convert.base import ROUNDED
from quant.convert.config import ModelConfig
from quant.errors import MalformedFile, UnsupportedModel
from quant.plan import TensorPlan

# Kinds of layers that a config of transformers 5 may describe apart from each other.
_GLOBAL, _LOCAL = "full_attention", "sliding_attention"


def parameters(config: ModelConfig, kind: str = _GLOBAL) -> ModelConfig:
    """The object with the rotary settings, of the layers of `kind` where they differ; empty where there is none."""
    scaling = config.part("rope_parameters" if config.get("rope_parameters") else "rope_scaling")
    return scaling.part(kind) if kind in scaling.values else scaling


def base(config: ModelConfig, kind: str = _GLOBAL, default: float = 10000.0) -> float:
    """The base of the frequencies."""
    return parameters(config, kind).number("rope_theta", config.number("rope_theta", default))


def local_base(config: ModelConfig) -> float:
    """The base of the frequencies in layers with a sliding window, where these have one of their own.

    It stands apart from `rope_theta`, which is about the other layers alone: in `rope_parameters` as transformers 5
    saves them, in `rope_local_base_freq` in most published files.
    """
    default = config.number("rope_local_base_freq", 10000.0)
    return config.part("rope_parameters").part(_LOCAL).number("rope_theta", default)


def share(config: ModelConfig, default: float = 1.0) -> float:
    """The part of a head that is rotated."""
    for key in ("partial_rotary_factor", "rotary_pct", "rope_pct"):
        for place in (parameters(config), config):
            if place.get(key) is not None:
                return place.number(key)
    return default


_LONG = ("longrope", "su")
_READS_LLAMA3 = (
    *("llama", "mistral3", "granite", "granitemoe", "arcee", "exaone", "exaone-moe", "exaone4", "llama4"),
    *("apertus", "deci", "llama-embed"),
)
_READS_LONG = ("llama", "mistral3", "granite", "granitemoe", "phi3", "apertus", "llama-embed", "minicpm3")
READERS = {"llama3": _READS_LLAMA3, **dict.fromkeys(_LONG, _READS_LONG)}
"""Scalings that need tables, and the architectures of llama.cpp whose graphs read them."""
# Scalings that llama.cpp has no place for in an architecture, or of which it applies a part in layers with windows.
_UNAPPLIED = {
    **dict.fromkeys(("deepseek2", "deepseek32"), ("linear",)),
    "glm-dsa": ("linear", "yarn"),
    "gemma3": ("yarn",),
    "gemma3n": ("yarn",),
    "gemma-embedding": ("yarn",),
    "gemma4": ("linear", "yarn"),
    "mimo2": ("linear", "yarn"),
    "modern-bert": ("linear", "yarn"),
    "nomic-bert": ("linear", "yarn"),
}
# Layers with windows are never scaled in these; in the others all layers are scaled alike.
_WINDOWS_UNSCALED = (
    *(
        "gemma3",
        "gemma-embedding",
        "gemma3n",
        "gemma4",
        "laguna",
        "mellum",
        "mimo2",
        "modern-bert",
        "olmo2",
    ),
    *("maple", "muse-glimmer", "plamo3", "spark2_5"),
)
# These tell positions in other ways.
_NAMES = """
    bert bloom gpt2 jais jamba jina-bert-v2 kimi-linear mamba mamba2 mpt nemotron_h nemotron_h_moe refact rwkv6 rwkv7
    starcoder
"""
_UNROTATED = frozenset(_NAMES.split())
# Settings of YaRN that have an effect on lengths whatever its factor is.
_LENGTHS = ("attention_factor", "mscale", "mscale_all_dim")
_WITHOUT_EFFECT = ("default", "dynamic", "mrope", "xdrope")
# The only one whose models are published with YaRN that does not round.
_ROUNDED_ANYWAY = "gpt-oss"


def check(config: ModelConfig, architecture: str) -> None:
    """Raise UnsupportedModel where the model is rotated otherwise than llama.cpp rotates in this architecture."""
    scaling = parameters(config)
    kind = kind_of(scaling)
    if kind in _UNAPPLIED.get(architecture, ()) or architecture not in READERS.get(kind, (architecture,)):
        raise UnsupportedModel(
            f"its rotary scaling is `{kind}`, which llama.cpp does not apply in the architecture `{architecture}`"
        )
    if kind == "yarn" and scaling.get("truncate") is False and architecture != _ROUNDED_ANYWAY:
        raise UnsupportedModel("its YaRN has `truncate: false`, and llama.cpp rounds the ends of the ramp")
    own = config.part("rope_parameters").part(_LOCAL)
    if not own.values:
        return
    unscaled = kind_of(own) in _WITHOUT_EFFECT
    if not unscaled if architecture in _WINDOWS_UNSCALED else own.values != scaling.values:
        raise UnsupportedModel("its layers with a window are rotated otherwise than llama.cpp rotates them")


def rotates(config: ModelConfig, architecture: str) -> bool:
    """Whether a model of this architecture rotates queries and keys at all; in Granite 4 its settings say so.

    Bamba, which is told by `attn_layer_indices`, always does.
    """
    if architecture == "granitehybrid" and config.get("attn_layer_indices") is None:
        return bool(config.get("position_embedding_type") == "rope")
    return architecture not in _UNROTATED


def unscaled(config: ModelConfig) -> ModelConfig:
    """The settings of a model that rotates nothing, without a scaling of the rotation, which it does not read."""
    found = [key for key in ("rope_scaling", "rope_parameters") if config.get(key)]
    return config.changed({"rope_theta": base(config), **dict.fromkeys(found)}) if found else config


def remarks(config: ModelConfig) -> tuple[str, ...]:
    """Clauses on whatever is rotated otherwise than by `transformers`."""
    scaling = parameters(config)
    return (ROUNDED,) if kind_of(scaling) == "yarn" and scaling.get("truncate") is False else ()


def shared_scale(scaling: ModelConfig) -> float:
    """`mscale_all_dim` of a YaRN that leaves lengths alone, as it does where `mscale` is the same number."""
    if scaling.get("mscale") != scaling.get("mscale_all_dim"):
        raise UnsupportedModel("its rotary scaling has an `mscale` that is not its `mscale_all_dim`")
    if scaling.get("attention_factor") is not None:
        raise UnsupportedModel("its rotary scaling has an `attention_factor` beside `mscale_all_dim`")
    return scaling.number("mscale_all_dim")


def describe(config: ModelConfig) -> dict[str, Any]:
    """The `rope.*` entries but for the dimension."""
    scaling = parameters(config)
    kind = kind_of(scaling)
    entries: dict[str, Any] = {"rope.freq_base": base(config)}
    # "dynamic" changes nothing within the trained length, "mrope" and "xdrope" nothing in a text; llama3 and longrope
    # have tensors.
    if kind == "llama3" or kind in _WITHOUT_EFFECT:
        return entries
    if kind in _LONG:
        return entries | _describe_long(config, scaling)
    if kind not in ("linear", "yarn"):
        raise UnsupportedModel(f"rotary scaling of the type `{kind[:40]}` cannot be converted yet")
    entries["rope.scaling.type"] = kind
    entries["rope.scaling.factor"] = scaling.number("factor")
    return entries | (_describe_yarn(config, scaling) if kind == "yarn" else {})


def kind_of(scaling: ModelConfig) -> str:
    """The name of the scaling; "default" where there is none, or one by a factor of 1, which has no effect."""
    kind = str(scaling.get("rope_type") or scaling.get("type") or "default")
    without = kind in ("linear", "llama3") or (kind == "yarn" and not set(_LENGTHS) & scaling.values.keys())
    return "default" if without and scaling.get("factor") == 1 else kind


def _trained(config: ModelConfig) -> int:
    return config.count("max_position_embeddings", 2048)


def _describe_yarn(config: ModelConfig, scaling: ModelConfig) -> dict[str, Any]:
    built_in = 1 + 0.1 * math.log(max(scaling.number("factor"), 1.0))
    odd = [key for key in ("mscale", "mscale_all_dim") if scaling.get(key) is not None]
    odd += ["attention_factor"] if abs(scaling.number("attention_factor", built_in) - built_in) > 1e-5 else []
    if odd:
        raise UnsupportedModel(f"rotary scaling with `{odd[0]}` cannot be converted yet")
    if (scaling.number("beta_fast", 32.0), scaling.number("beta_slow", 1.0)) != (32.0, 1.0):
        raise UnsupportedModel("its YaRN has other betas than 32 and 1, the only ones that llama.cpp knows for it")
    return {
        "rope.scaling.original_context_length": scaling.count("original_max_position_embeddings", _trained(config)),
        **betas(scaling),
    }


def betas(scaling: ModelConfig) -> dict[str, Any]:
    """Between which numbers of turns YaRN goes over from one scale to the other; few of the architectures read them."""
    return {
        "rope.scaling.yarn_beta_fast": scaling.number("beta_fast", 32.0),
        "rope.scaling.yarn_beta_slow": scaling.number("beta_slow", 1.0),
    }


def _original(config: ModelConfig, scaling: ModelConfig) -> int:
    return scaling.count("original_max_position_embeddings", config.count("original_max_position_embeddings", 4096))


def _describe_long(config: ModelConfig, scaling: ModelConfig) -> dict[str, Any]:
    """Longrope: factors for short and for long texts, and attention that is sharper by the root of a logarithm."""
    original = _original(config, scaling)
    stretch = scaling.number("factor", _trained(config) / original)
    sharper = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 and original > 1 else 1.0
    return {
        # Without it llama.cpp looks for the tensors in Phi 3 alone.
        "rope.scaling.type": "longrope",
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": scaling.number("attention_factor", sharper),
    }


class HasRotated(Protocol):
    """Sizes of a model in whose heads `rotated` values are rotated."""

    @property
    def rotated(self) -> int:
        """The number of these values, an even one."""


def tables(config: ModelConfig, sizes: HasRotated) -> tuple[TensorPlan, ...]:
    """The tensors that some kinds of scaling need, float32: divisors of the frequency of each rotated pair."""
    scaling = parameters(config)
    kind = kind_of(scaling)
    pairs = sizes.rotated // 2
    if kind == "llama3":
        return (_table("rope_freqs.weight", _stretched(scaling, base(config), pairs)),)
    if kind in _LONG:
        lengths = ("long", "short")
        return tuple(_table(f"rope_factors_{name}.weight", _factors(scaling, name, pairs)) for name in lengths)
    return ()


def _table(name: str, values: list[float]) -> TensorPlan:
    return TensorPlan(name, (len(values),), "F32", values=struct.pack(f"<{len(values)}f", *values))


def _stretched(scaling: ModelConfig, base: float, pairs: int) -> list[float]:
    """Llama 3's scaling."""
    factor, low, high = scaling.number("factor"), scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    trained = scaling.count("original_max_position_embeddings")
    if not (factor > 0 and 0 < low <= high):
        raise MalformedFile(f"`{scaling.name}` has factors that cannot be: {factor}, {low}, {high}")
    divisors = []
    for pair in range(pairs):
        turns = trained * base ** (-pair / pairs) / (2 * math.pi)
        # Fast pairs stay, slow ones are stretched by the factor, between them a straight line.
        share = min(max((turns - low) / (high - low), 0.0), 1.0) if low < high else float(turns > high)
        divisors.append(1 / ((1 - share) / factor + share))
    return divisors


def _factors(scaling: ModelConfig, name: str, pairs: int) -> list[float]:
    values = scaling.get(f"{name}_factor")
    fine = isinstance(values, list) and all(type(value) in (int, float) and 0 < value < 1e6 for value in values)
    if not fine or len(values) != pairs:
        raise scaling.wrong(f"{name}_factor", f"{pairs} positive numbers")
    return [float(value) for value in values]
