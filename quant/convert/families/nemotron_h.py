"""Nemotron H and Nemotron 3: each layer is a mixer, attention without positions, a feed-forward part or experts.

In Puzzle, which is made of Nemotron 3 Super, the experts of each layer have a width and a number of their own.

Sources: `modeling_nemotron_h.py` and `configuration_nemotron_h.py` of transformers, `nemotron-h.cpp` of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from quant.convert.base import Family, Layers, in_layers, tensor
from quant.convert.config import ModelConfig
from quant.convert.families import decoder
from quant.convert.families.decoder import layer, linear, norm
from quant.convert.families.hybrid import MixerSizes, describe_mixer, mixer, read_mixer_sizes
from quant.convert.families.moe import MixtureSizes
from quant.errors import MalformedFile, UnsupportedModel
from quant.gguf.check import MAX_BLOCKS

_MIXER, _ATTENTION, _DENSE, _EXPERTS = "linear_attention", "full_attention", "mlp", "moe"
_SIGNS = {"M": _MIXER, "*": _ATTENTION, "-": _DENSE, "E": _EXPERTS}
_OLD_NAMES = {"mamba": _MIXER, "attention": _ATTENTION}
# Sizes of a mixer: Mamba 2's name → the name that files may have for it.
_RENAMED = {
    "n_groups": "mamba_n_groups",
    "conv_kernel": "mamba_d_conv",
    "time_step_limit": "mamba_dt_limit",
    "state_size": "ssm_state_size",
}
# The shortest time step of the class, and of published models: no trained step comes near it.
_LEAST_STEP = 0.001
_OF_EXPERTS = (
    "moe_intermediate_size",
    "moe_latent_size",
    "moe_shared_expert_intermediate_size",
    "n_group",
    "n_routed_experts",
    "n_shared_experts",
    "norm_topk_prob",
    "num_experts_per_tok",
    "routed_scaling_factor",
    "topk_group",
)


def _kinds(config: ModelConfig) -> list[str]:
    """The kind of each layer, which files give as a list of names or as a text of signs."""
    kinds = config.get("layer_types") or config.get("layers_block_type")
    config.without_effect("layers_block_type", "hybrid_override_pattern", "num_hidden_layers")
    if kinds is None and isinstance(config.get("hybrid_override_pattern"), str):
        kinds = [_SIGNS.get(sign) for sign in config.get("hybrid_override_pattern")]
    if not isinstance(kinds, list) or not 0 < len(kinds) <= MAX_BLOCKS:
        raise config.wrong("layers_block_type", f"a list of what up to {MAX_BLOCKS} layers are")
    named = [_OLD_NAMES.get(kind, kind) if isinstance(kind, str) else None for kind in kinds]
    if any(kind not in _SIGNS.values() for kind in named):
        raise config.wrong("layers_block_type", f"a list of {', '.join(_SIGNS.values())}")
    if _MIXER not in named:
        raise UnsupportedModel("`layers_block_type` has no layer of Mamba, and llama.cpp needs one in such a model")
    return [str(kind) for kind in named]


@dataclass(frozen=True, kw_only=True)
class _NemotronSizes(MixtureSizes, MixerSizes):
    """Each layer belongs to one of the four sets; a model has either `feeding` layers or `routed` ones.

    Experts read and write `latent` values; in the layers `projecting` a matrix makes them of the layer's input, and
    another one takes them back. `experts_wide` are the widths of the experts in each layer, where these differ.
    """

    mixing: Layers
    attending: Layers
    feeding: Layers
    routed: Layers
    projecting: Layers
    latent: int
    experts_wide: tuple[int, ...] = ()

    def at(self, layer: int) -> Self:
        """The sizes of one layer."""
        return replace(self, expert=self.experts_wide[layer]) if self.experts_wide else self


def _read_sizes(config: ModelConfig) -> _NemotronSizes:
    kinds = _kinds(config)
    odd = [key for key in ("mlp_bias", "attention_bias", "mamba_proj_bias", "use_bias") if config.flag(key)]
    odd += [key for key in ("num_nextn_predict_layers",) if config.get(key)]
    if odd or config.get("mlp_hidden_act") not in (None, "relu2"):
        raise UnsupportedModel(f"it is built otherwise than can be converted yet (`{(*odd, 'mlp_hidden_act')[0]}`)")
    if config.number("time_step_min", _LEAST_STEP) > _LEAST_STEP:
        raise UnsupportedModel("it keeps its time steps above `time_step_min`, and llama.cpp does not")
    if {_DENSE, _EXPERTS} <= set(kinds):
        raise UnsupportedModel("it has feed-forward layers beside experts, and llama.cpp knows one of the two")
    named = {new: config.get(old) for new, old in _RENAMED.items() if config.get(new) is None and config.get(old)}
    config = config.changed({**named, "num_hidden_layers": len(kinds)})
    states = config.count("mamba_num_heads")
    sizes = decoder.read_sizes(config)
    mixers = read_mixer_sizes(config, sizes, states * config.count("mamba_head_dim"), states, prefix="")
    layers = {kind: frozenset(n for n, each in enumerate(kinds) if each == kind) for kind in _SIGNS.values()}
    routed = bool(layers[_EXPERTS])
    config.without_effect(*_RENAMED.values(), *(() if routed else _OF_EXPERTS))
    latent = config.count("moe_latent_size") if routed and config.get("moe_latent_size") is not None else 0
    return _NemotronSizes(
        **(vars(sizes) | vars(mixers)),
        projecting=layers[_EXPERTS] if latent else frozenset(),
        latent=latent or sizes.width,
        experts=config.count("n_routed_experts") if routed else 0,
        expert=config.count("moe_intermediate_size") if routed else 0,
        shared_expert=config.count("moe_shared_expert_intermediate_size") if routed else 0,
        mixing=layers[_MIXER],
        attending=layers[_ATTENTION],
        feeding=layers[_DENSE],
        routed=layers[_EXPERTS],
    )


def _describe(config: ModelConfig, sizes: _NemotronSizes) -> dict[str, Any]:
    wide = {_DENSE: sizes.feed_forward, _EXPERTS: sizes.expert}
    kinds = _kinds(config)
    return {
        "vocab_size": sizes.vocabulary,
        "context_length": config.count("max_position_embeddings", 4096),
        "embedding_length": sizes.width,
        "block_count": sizes.layers,
        # A layer that has neither of the two is a mixer.
        "feed_forward_length": [wide.get(kind, 0) for kind in kinds],
        "attention.head_count": sizes.heads,
        "attention.head_count_kv": [sizes.key_heads if kind == _ATTENTION else 0 for kind in kinds],
        "attention.key_length": sizes.head,
        "attention.value_length": sizes.head,
        "attention.layer_norm_epsilon": config.number("layer_norm_epsilon", 1e-5),
        **describe_mixer(sizes),
    }


def _describe_experts(config: ModelConfig, sizes: _NemotronSizes) -> dict[str, Any]:
    if config.count("n_group", 1) != 1 or config.count("n_shared_experts", 1) != 1:
        raise UnsupportedModel("it chooses among groups of experts, which llama.cpp does not do for Nemotron")
    return {
        **_describe(config, sizes),
        **decoder.describe_experts(sizes.experts, config.count("num_experts_per_tok")),
        "expert_feed_forward_length": sizes.expert,
        "expert_shared_feed_forward_length": sizes.shared_expert,
        "expert_shared_count": 1,
        "expert_weights_norm": config.flag("norm_topk_prob", True),
        "expert_weights_scale": decoder.scale(config, "routed_scaling_factor", 1.0),
        **({"moe_latent_size": sizes.latent} if sizes.projecting else {}),
    }


def _with_experts(config: ModelConfig) -> Family[_NemotronSizes] | None:
    return NEMOTRON_H_MOE if _EXPERTS in _kinds(config) else None


NEMOTRON_H = Family(
    classes=("NemotronHForCausalLM",),
    architecture="nemotron_h",
    tensors=(
        tensor("embeddings.weight", "token_embd.weight", "vocabulary", "width"),
        decoder.OUTPUT,
        *decoder.final_norm("norm_f"),
        *norm("norm", "attn_norm"),
        *in_layers("mixing", *mixer("mixer", switch="use_conv_bias")),
        *in_layers(
            "attending",
            *linear("mixer.q_proj", "attn_q", "queries", "width", bias=False),
            *linear("mixer.k_proj", "attn_k", "keys", "width", bias=False),
            *linear("mixer.v_proj", "attn_v", "keys", "width", bias=False),
            *linear("mixer.o_proj", "attn_output", "width", "queries", bias=False),
        ),
        *in_layers(
            "feeding",
            *linear("mixer.up_proj", "ffn_up", "feed_forward", "width", bias=False),
            *linear("mixer.down_proj", "ffn_down", "width", "feed_forward", bias=False),
        ),
    ),
    sizes=_NemotronSizes,
    read_sizes=_read_sizes,
    describe=_describe,
    prefix=r"(backbone\.|model\.)?",
    activations=("silu", "relu2"),
    instead=_with_experts,
)
NEMOTRON_H_MOE = replace(
    NEMOTRON_H,
    classes=(),
    architecture="nemotron_h_moe",
    tensors=(
        *NEMOTRON_H.tensors,
        *in_layers(
            "routed",
            *linear("mixer.gate", "ffn_gate_inp", "experts", "width", bias=False),
            layer("mixer.gate.e_score_correction_bias", "exp_probs_b.bias", "experts"),
            decoder.stacked("mixer.experts.[].up_proj", "ffn_up", "expert", "latent"),
            decoder.stacked("mixer.experts.[].down_proj", "ffn_down", "latent", "expert"),
            *linear("mixer.shared_experts.up_proj", "ffn_up_shexp", "shared_expert", "width", bias=False),
            *linear("mixer.shared_experts.down_proj", "ffn_down_shexp", "width", "shared_expert", bias=False),
        ),
        *in_layers(
            "projecting",
            *linear("mixer.fc1_latent_proj", "ffn_latent_down", "latent", "width", bias=False),
            *linear("mixer.fc2_latent_proj", "ffn_latent_up", "width", "latent", bias=False),
        ),
    ),
    describe=_describe_experts,
)


def _blocks(config: ModelConfig) -> list[ModelConfig]:
    """The layers, each with its kind, and with the numbers of its experts where it has some."""
    blocks = config.get("block_configs")
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise config.wrong("block_configs", "a list that says what each layer is")
    return [ModelConfig(f"{config.name}: block_configs", block) for block in blocks]


def _usual_puzzle(config: ModelConfig) -> ModelConfig:
    """The settings of a model whose layers are alike, by the first layer with experts."""
    blocks = _blocks(config)
    kinds = [block.get("block_type") for block in blocks]
    first = next((block for block in blocks if block.get("block_type") == _EXPERTS), None)
    if first is None:
        raise config.wrong("block_configs", f"a list in which a layer has experts (`{_EXPERTS}`)")
    # The class reads none of the two beside the list.
    config.without_effect("layer_types", "mtp_block_configs", "num_nextn_predict_layers", "intermediate_size")
    return config.changed(
        {
            "layer_types": None,
            "layers_block_type": kinds,
            "num_nextn_predict_layers": None,
            "moe_intermediate_size": first.count("moe_intermediate_size"),
            "num_experts_per_tok": first.count("num_experts_per_tok"),
            "intermediate_size": first.count("moe_intermediate_size"),
        }
    )


def _read_puzzle_sizes(config: ModelConfig) -> _NemotronSizes:
    sizes = _read_sizes(_usual_puzzle(config))
    blocks = _blocks(config)
    wide = tuple(
        block.count("moe_intermediate_size") if number in sizes.routed else 1 for number, block in enumerate(blocks)
    )
    return replace(sizes, experts_wide=wide)


def _describe_puzzle(config: ModelConfig, sizes: _NemotronSizes) -> dict[str, Any]:
    used = [
        block.count("num_experts_per_tok") if number in sizes.routed else 0
        for number, block in enumerate(_blocks(config))
    ]
    if max(used) > sizes.experts:
        raise MalformedFile(f"{max(used)} of {sizes.experts} experts cannot be used for a token")
    wide = [each if number in sizes.routed else 0 for number, each in enumerate(sizes.experts_wide)]
    return {
        **_describe_experts(_usual_puzzle(config), sizes),
        "feed_forward_length": wide,
        "expert_feed_forward_length": wide,
        "expert_used_count": used,
    }


PUZZLE = replace(
    NEMOTRON_H_MOE,
    classes=("NemotronHPuzzleForCausalLM",),
    read_sizes=_read_puzzle_sizes,
    describe=_describe_puzzle,
    unused=rf"{NEMOTRON_H_MOE.unused}|mtp\..*",
    instead=lambda config: None,
)
FAMILIES = (NEMOTRON_H, PUZZLE)
