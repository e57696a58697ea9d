"""The Llama family: Llama 1 to 3, Mistral, SmolLM 1 and 2, TinyLlama and all that share their layers.

Not covered: mixtures of experts, vision, layers without rotary embedding (SmolLM3). Sources: `modeling_llama.py` and
`modeling_rope_utils.py` of transformers, `gguf/constants.py` of llama.cpp.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from typing import Any

from quant.convert.base import Family, Known, PairRotaryHalves
from quant.convert.config import Config
from quant.errors import MalformedFile, UnsupportedModel
from quant.plan import TensorPlan, Transform

_LAYER = "model.layers.{}."
_TENSORS = (
    Known("model.embed_tokens.weight", "token_embd.weight", ("vocabulary", "width")),
    Known("model.norm.weight", "output_norm.weight", ("width",)),
    Known("lm_head.weight", "output.weight", ("vocabulary", "width")),
    Known(_LAYER + "input_layernorm.weight", "blk.{}.attn_norm.weight", ("width",)),
    Known(_LAYER + "self_attn.q_proj.weight", "blk.{}.attn_q.weight", ("queries", "width"), transform="pair"),
    Known(_LAYER + "self_attn.k_proj.weight", "blk.{}.attn_k.weight", ("keys", "width"), transform="pair"),
    Known(_LAYER + "self_attn.v_proj.weight", "blk.{}.attn_v.weight", ("keys", "width")),
    Known(_LAYER + "self_attn.o_proj.weight", "blk.{}.attn_output.weight", ("width", "queries")),
    Known(_LAYER + "post_attention_layernorm.weight", "blk.{}.ffn_norm.weight", ("width",)),
    Known(_LAYER + "mlp.gate_proj.weight", "blk.{}.ffn_gate.weight", ("feed_forward", "width")),
    Known(_LAYER + "mlp.up_proj.weight", "blk.{}.ffn_up.weight", ("feed_forward", "width")),
    Known(_LAYER + "mlp.down_proj.weight", "blk.{}.ffn_down.weight", ("width", "feed_forward")),
    Known(_LAYER + "self_attn.q_proj.bias", "blk.{}.attn_q.bias", ("queries",), False, "pair"),
    Known(_LAYER + "self_attn.k_proj.bias", "blk.{}.attn_k.bias", ("keys",), False, "pair"),
    Known(_LAYER + "self_attn.v_proj.bias", "blk.{}.attn_v.bias", ("keys",), False),
    Known(_LAYER + "self_attn.o_proj.bias", "blk.{}.attn_output.bias", ("width",), False),
    Known(_LAYER + "mlp.gate_proj.bias", "blk.{}.ffn_gate.bias", ("feed_forward",), False),
    Known(_LAYER + "mlp.up_proj.bias", "blk.{}.ffn_up.bias", ("feed_forward",), False),
    Known(_LAYER + "mlp.down_proj.bias", "blk.{}.ffn_down.bias", ("width",), False),
)


def read_sizes(config: Config) -> dict[str, int]:
    """The sizes in `config.json` by which the tensors are shaped."""
    width, heads = config.count("hidden_size"), config.count("num_attention_heads")
    shared = config.count("num_key_value_heads", heads)
    head = config.count("head_dim", width // heads or 1)
    if heads % shared:
        raise MalformedFile(f"{heads} attention heads cannot share {shared} key heads")
    if head % 2:
        raise UnsupportedModel(f"heads of {head} values cannot be rotated in pairs")
    return {
        "vocabulary": config.count("vocab_size"),
        "width": width,
        "layers": config.count("num_hidden_layers"),
        "feed_forward": config.count("intermediate_size"),
        "head": head,
        "queries": heads * head,
        "keys": shared * head,
    }


def describe(config: Config, sizes: Mapping[str, int]) -> dict[str, Any]:
    """The `llama.*` entries: sizes, normalization, rotary embedding."""
    if config.values.get("hidden_act", "silu") != "silu":
        raise UnsupportedModel(
            f"the activation `{ascii(config.get('hidden_act'))[:40]}` is none that Llama models have"
        )
    head = sizes["head"]
    return {
        "llama.vocab_size": sizes["vocabulary"],
        "llama.context_length": _context(config),
        "llama.embedding_length": sizes["width"],
        "llama.block_count": sizes["layers"],
        "llama.feed_forward_length": sizes["feed_forward"],
        "llama.attention.head_count": sizes["queries"] // head,
        "llama.attention.head_count_kv": sizes["keys"] // head,
        "llama.attention.key_length": head,
        "llama.attention.value_length": head,
        "llama.attention.layer_norm_rms_epsilon": config.number("rms_norm_eps", 1e-6),
        "llama.rope.dimension_count": head,
        **_describe_rotation(config),
    }


def _context(config: Config) -> int:
    """Trained length. llama.cpp's `llama` has no sliding window, so a window bounds what gives the right answers."""
    trained = config.count("max_position_embeddings", 2048)
    return min(trained, config.count("sliding_window", trained))


def _rotation(config: Config) -> tuple[Config, str, float]:
    """Scaling parameters, their type and the base, from `rope_parameters` (transformers 5) or `rope_scaling`."""
    scaling = config.part("rope_parameters" if config.get("rope_parameters") else "rope_scaling")
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    return scaling, str(kind), scaling.number("rope_theta", config.number("rope_theta", 10000.0))


def _describe_rotation(config: Config) -> dict[str, Any]:
    scaling, kind, base = _rotation(config)
    entries: dict[str, Any] = {"llama.rope.freq_base": base}
    # "dynamic" changes nothing within the trained length, and llama3's factors are a tensor.
    if kind in ("default", "dynamic", "llama3"):
        return entries
    if kind not in ("linear", "yarn"):
        raise UnsupportedModel(f"rotary scaling of the type `{kind[:40]}` cannot be converted yet")
    entries["llama.rope.scaling.type"] = kind
    entries["llama.rope.scaling.factor"] = scaling.number("factor")
    if kind == "yarn":
        trained = config.count("max_position_embeddings", 2048)
        entries["llama.rope.scaling.original_context_length"] = scaling.count(
            "original_max_position_embeddings", trained
        )
        entries["llama.rope.scaling.yarn_beta_fast"] = scaling.number("beta_fast", 32.0)
        entries["llama.rope.scaling.yarn_beta_slow"] = scaling.number("beta_slow", 1.0)
        odd = [key for key in ("attention_factor", "mscale", "mscale_all_dim") if scaling.get(key) is not None]
        if odd:
            raise UnsupportedModel(f"rotary scaling with `{odd[0]}` cannot be converted yet")
    return entries


def transforms(sizes: Mapping[str, int]) -> dict[str, Transform]:
    """The changes named in the table of tensors."""
    return {"pair": PairRotaryHalves(sizes["head"])}


def computed(config: Config, sizes: Mapping[str, int]) -> tuple[TensorPlan, ...]:
    """Llama 3's rotary scaling: one divisor for each pair of a head, as a tensor."""
    scaling, kind, base = _rotation(config)
    if kind != "llama3":
        return ()
    factor, low, high = scaling.number("factor"), scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    trained = scaling.count("original_max_position_embeddings")
    if not (factor > 0 and 0 < low < high):
        raise MalformedFile(f"`{scaling.name}` has factors that cannot be: {factor}, {low}, {high}")
    divisors = []
    for pair in range(sizes["head"] // 2):
        turns = trained * base ** (-2 * pair / sizes["head"]) / (2 * math.pi)
        # Fast pairs stay, slow ones are stretched by the factor, between them a straight line.
        share = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(1 / ((1 - share) / factor + share))
    values = struct.pack(f"<{len(divisors)}f", *divisors)
    return (TensorPlan("rope_freqs.weight", (len(divisors),), "F32", values=values),)


FAMILY = Family(
    classes=("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM"),
    architecture="llama",
    tensors=_TENSORS,
    unused=re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"),
    read_sizes=read_sizes,
    describe=describe,
    transforms=transforms,
    computed=computed,
)
