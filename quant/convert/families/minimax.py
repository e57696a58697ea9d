"""MiniMax Text 01 and M1: lightning attention in most layers, a state for each head, and a norm's output passed on.

Sources: `modeling_minimax.py` of transformers, the code in the models' repositories, `minimax-01.cpp` of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quant.convert.base import Family, Layers, Times, count_layers, in_layers
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, moe
from quant.convert.families.decoder import linear, norm
from quant.convert.families.moe import MixtureSizes
from quant.errors import UnsupportedModel

_KINDS = ("full_attention", "linear_attention")
# The factors of the values that go past a part, or come out: the names in the first code and in transformers.
_PASSED = {
    "layernorm_full_attention": "full_attn",
    "layernorm_linear_attention": "linear_attn",
    "layernorm_mlp": "mlp",
}


@dataclass(frozen=True, kw_only=True)
class _MiniMaxSizes(MixtureSizes):
    """The layers `seeing` attend as usual, the layers `linear` by states."""

    seeing: Layers
    linear: Layers


def _kinds(config: ModelConfig) -> list[str]:
    """The kind of each layer, which the first code gives as numbers."""
    layers, kinds, numbers = count_layers(config), config.get("layer_types"), config.get("attn_type_list")
    if kinds is None and isinstance(numbers, list) and all(each in (0, 1) for each in numbers):
        kinds = [_KINDS[1 - each] for each in numbers]
    if kinds is None:
        kinds = [_KINDS[number % 2] for number in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in _KINDS for kind in kinds):
        raise config.wrong("layer_types", f"a list that says of {layers} layers which attention they have")
    if len(set(kinds)) < 2:
        raise UnsupportedModel("its layers are all of one kind (`layer_types`), and llama.cpp wants both")
    return [str(kind) for kind in kinds]


def _usual(config: ModelConfig) -> ModelConfig:
    """The part of a head that is rotated, which the first code gives as a number of values."""
    if config.get("rotary_dim") is None:
        return config
    return config.changed({"partial_rotary_factor": config.count("rotary_dim") / config.count("head_dim")})


def _read_sizes(config: ModelConfig) -> _MiniMaxSizes:
    sizes, kinds = decoder.read_sizes(_usual(config)), _kinds(config)
    return _MiniMaxSizes(
        **vars(sizes),
        experts=config.count("num_local_experts"),
        expert=sizes.feed_forward,
        seeing=frozenset(number for number, kind in enumerate(kinds) if kind == _KINDS[0]),
        linear=frozenset(number for number, kind in enumerate(kinds) if kind == _KINDS[1]),
    )


def _scale(config: ModelConfig) -> float:
    """The factor of the values that go past attention and experts; the values that come out have none."""
    found: dict[str, set[float]] = {"alpha": set(), "beta": set()}
    for first, second in _PASSED.items():
        for kind, values in found.items():
            old = f"{first}_{kind}"
            values.add(config.number(old if config.get(old) is not None else f"{second}_{kind}_factor", 1.0))
    if len(found["alpha"]) > 1 or found["beta"] != {1.0}:
        raise UnsupportedModel("it adds what goes past its parts by several factors, and llama.cpp by one (`alpha`)")
    if found["alpha"] == {0.0}:
        raise UnsupportedModel("nothing goes past its parts (`alpha` is 0), by which llama.cpp means another thing")
    return found["alpha"].pop()


def _describe(config: ModelConfig, sizes: _MiniMaxSizes) -> dict[str, Any]:
    expected = {"postnorm": True, "shared_intermediate_size": 0, "sliding_window": None}
    wrong = [key for key, value in expected.items() if config.get(key, value) != value]
    if wrong:
        raise UnsupportedModel(f"it computes otherwise than llama.cpp's `minimax-01` does (`{wrong[0]}`)")
    # How a computation is cut, and how an expert would be shared, of which there is none.
    config.without_effect("block_size", "shared_moe_mode", "sliding_window")
    return {
        **decoder.describe(_usual(config), sizes),
        **decoder.describe_experts(sizes.experts, config.count("num_experts_per_tok")),
        "attention.recurrent_layers": [number in sizes.linear for number in range(sizes.layers)],
        "residual_scale": _scale(config),
    }


MINIMAX = Family(
    classes=("MiniMaxForCausalLM", "MiniMaxText01ForCausalLM", "MiniMaxM1ForCausalLM"),
    architecture="minimax-01",
    tensors=(
        *decoder.ENDS,
        *decoder.NORMS,
        *in_layers(
            "seeing",
            *linear("self_attn.q_proj", "attn_q", "queries", "width", bias=False),
            *linear("self_attn.k_proj", "attn_k", "keys", "width", bias=False),
            *linear("self_attn.v_proj", "attn_v", "keys", "width", bias=False),
            *linear("self_attn.o_proj", "attn_output", "width", "queries", bias=False),
        ),
        *in_layers(
            "linear",
            *linear("self_attn.qkv_proj", "attn_qkv", Times(3, "queries"), "width", bias=False),
            *linear("self_attn.output_gate", "attn_gate", "queries", "width", bias=False),
            *linear("self_attn.out_proj", "attn_output", "width", "queries", bias=False),
            *norm("self_attn.norm", "attn_norm_2", "queries"),
        ),
        *moe.MIXTRAL_EXPERTS,
    ),
    sizes=_MiniMaxSizes,
    read_sizes=_read_sizes,
    describe=_describe,
    # Computed of the numbers of heads and layers, whatever a file has.
    unused=r"layers\.\d+\.self_attn\.(diagonal_decay|key_decay|query_decay|slope_rate|rotary_emb\.inv_freq)",
)
FAMILIES = (MINIMAX,)
