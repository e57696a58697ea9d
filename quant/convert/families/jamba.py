"""Jamba: mixers of Mamba's first kind in most layers, attention without positions in the others; experts in some.

Sources: `modeling_jamba.py` of transformers, `models/jamba.cpp` of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quant.convert.base import Family, Layers, Times, in_layers, switched
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, moe
from quant.convert.families.decoder import layer, linear, norm
from quant.convert.families.moe import MixtureSizes
from quant.convert.families.recurrent import rates
from quant.errors import UnsupportedModel


@dataclass(frozen=True, kw_only=True)
class _JambaSizes(MixtureSizes):
    """A layer is `mixing` or `attending`, and it is `routed` or `dense`.

    A mixer has `inner` channels of `state` values each; time steps come from `rank` values.
    """

    inner: int
    state: int
    rank: int
    kernel: int
    mixing: Layers
    attending: Layers
    routed: Layers
    dense: Layers

    @property
    def selection(self) -> int:
        """The values that each token sets by itself: time step, input and output of the state."""
        return self.rank + 2 * self.state


def _every(config: ModelConfig, name: str, layers: int) -> Layers:
    """The layers whose number leaves `NAME_layer_offset` when it is divided by `NAME_layer_period`."""
    period, key = config.count(f"{name}_layer_period"), f"{name}_layer_offset"
    offset = config.count(key) if config.get(key) != 0 else 0
    return frozenset(number for number in range(layers) if number % period == offset)


def _read_sizes(config: ModelConfig) -> _JambaSizes:
    sizes = decoder.read_sizes(_unrotated(config))
    every: Layers = frozenset(range(sizes.layers))
    attending = _every(config, "attn", sizes.layers)
    if attending in (every, frozenset()):
        raise UnsupportedModel("all its layers attend, or none (`attn_layer_period`), and llama.cpp wants both kinds")
    if config.count("mamba_expand", 2) != 2:
        raise UnsupportedModel("its inner size is not twice its width (`mamba_expand`), as llama.cpp needs it")
    experts = config.count("num_experts")
    routed = _every(config, "expert", sizes.layers) if experts > 1 else frozenset()
    automatic = config.get("mamba_dt_rank") in (None, "auto")
    return _JambaSizes(
        **vars(sizes),
        experts=experts,
        expert=sizes.feed_forward,
        inner=2 * sizes.width,
        state=config.count("mamba_d_state", 16),
        rank=-(-sizes.width // 16) if automatic else config.count("mamba_dt_rank"),
        kernel=config.count("mamba_d_conv", 4),
        mixing=every - attending,
        attending=attending,
        routed=routed,
        dense=every - routed,
    )


def _unrotated(config: ModelConfig) -> ModelConfig:
    """The config without rotary settings, none of which the class reads."""
    return config.changed({"rope_parameters": None, "rope_scaling": None, "partial_rotary_factor": None})


def _describe(config: ModelConfig, sizes: _JambaSizes) -> dict[str, Any]:
    usual = decoder.describe(_unrotated(config), sizes)
    used = config.count("num_experts_per_tok", 2) if sizes.routed else 0
    config.without_effect("num_experts_per_tok", "expert_layer_offset", "expert_layer_period")
    return {
        **{key: value for key, value in usual.items() if not key.startswith("rope.")},
        **(decoder.describe_experts(sizes.experts, used) if sizes.routed else {}),
        # No heads mean a mixer.
        "attention.head_count_kv": [sizes.key_heads * (number in sizes.attending) for number in range(sizes.layers)],
        "ssm.conv_kernel": sizes.kernel,
        "ssm.inner_size": sizes.inner,
        "ssm.state_size": sizes.state,
        "ssm.time_step_rank": sizes.rank,
    }


_MIXER = (
    *linear("mamba.in_proj", "ssm_in", Times(2, "inner"), "width", bias=False),
    layer("mamba.conv1d.weight", "ssm_conv1d.weight", "inner", 1, "kernel", becomes=("inner", "kernel")),
    *switched("mamba_conv_bias", layer("mamba.conv1d.bias", "ssm_conv1d.bias", "inner")),
    *linear("mamba.x_proj", "ssm_x", "selection", "inner", bias=False),
    *norm("mamba.dt_layernorm", "ssm_dt_norm", "rank"),
    *norm("mamba.b_layernorm", "ssm_b_norm", "state"),
    *norm("mamba.c_layernorm", "ssm_c_norm", "state"),
    *linear("mamba.dt_proj", "ssm_dt", "inner", "rank", bias=True),
    layer("mamba.A_log", "ssm_a", "inner", "state", transform=rates),
    layer("mamba.D", "ssm_d", "inner"),
    *linear("mamba.out_proj", "ssm_out", "width", "inner", bias=False),
)
JAMBA = Family(
    classes=("JambaForCausalLM",),
    architecture="jamba",
    tensors=(
        decoder.EMBEDDING,
        decoder.OUTPUT,
        *decoder.final_norm("final_layernorm"),
        *norm("input_layernorm", "attn_norm"),
        *norm("pre_ff_layernorm", "ffn_norm"),
        *in_layers("mixing", *_MIXER),
        *in_layers("attending", *(row for row in decoder.ATTENTION if row.required)),
        *in_layers("routed", *moe.either_experts("feed_forward.router", "feed_forward.experts")),
        *in_layers(
            "dense",
            *linear("feed_forward.gate_proj", "ffn_gate", "feed_forward", "width", bias=False),
            *linear("feed_forward.up_proj", "ffn_up", "feed_forward", "width", bias=False),
            *linear("feed_forward.down_proj", "ffn_down", "width", "feed_forward", bias=False),
        ),
    ),
    sizes=_JambaSizes,
    read_sizes=_read_sizes,
    describe=_describe,
)
FAMILIES = (JAMBA,)
