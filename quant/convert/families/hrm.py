"""HRM-Text: two stacks of layers that are gone through by turns, a fast one several times for each pass of a slow one.

Sources: `modeling_hrm_text.py` of transformers, `hrm-text.cpp` of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quant.convert.base import Family, Known, Layers, Target, Times, choices, tensor
from quant.convert.config import ModelConfig
from quant.convert.families import decoder
from quant.convert.families.decoder import DecoderSizes
from quant.errors import UnsupportedModel
from quant.gguf.check import MAX_BLOCKS


@dataclass(frozen=True, kw_only=True)
class _HrmSizes(DecoderSizes):
    """A stack has `layers` layers; in the file the layers of the `fast` stack stand before the `slow` stack's.

    Every passage through a layer has a place of its own in the KV cache: `places` in all.
    """

    fast: Layers
    slow: Layers
    places: int


def _usual(config: ModelConfig) -> ModelConfig:
    """The settings with the layers of a stack; newer files give the number of all passages beside it."""
    config.without_effect("num_hidden_layers", "L_bp_cycles")
    own = "num_layers_per_stack" if config.get("num_layers_per_stack") is not None else "num_hidden_layers"
    return config.changed({"num_hidden_layers": config.count(own), "num_key_value_heads": None})


def _read_sizes(config: ModelConfig) -> _HrmSizes:
    sizes = decoder.read_sizes(_usual(config))
    high, low = config.count("H_cycles", 2), config.count("L_cycles", 3)
    places = sizes.layers * high * (low + 1)
    if places > MAX_BLOCKS:
        raise UnsupportedModel(f"a text goes through {places} layers, and at most {MAX_BLOCKS} can be run")
    return _HrmSizes(
        **vars(sizes),
        fast=frozenset(range(sizes.layers)),
        slow=frozenset(range(sizes.layers, 2 * sizes.layers)),
        places=places,
    )


def _describe(config: ModelConfig, sizes: _HrmSizes) -> dict[str, Any]:
    scale = config.get("embedding_scale")
    first = config.number("initializer_range", 0.02)
    if scale is None and not first:
        raise UnsupportedModel("its embedding is divided by 0 (`initializer_range`)")
    return {
        **decoder.describe(_usual(config), sizes),
        "block_count": sizes.places,
        "embedding_scale": 1 / first if scale is None else decoder.scale(config, "embedding_scale", 1.0),
        "hrm.layers_per_stack": sizes.layers,
        "hrm.h_cycles": config.count("H_cycles", 2),
        "hrm.l_cycles": config.count("L_cycles", 3),
        # llama.cpp keeps it and goes on: the tokens that see each other both ways are told in a training alone.
        "hrm.prefix_lm": config.flag("prefix_lm", True),
    }


def _stack(name: str, layers: str, number: str) -> tuple[Known, ...]:
    """The tensors of a stack, as files have them, or apart from each other, as transformers does in memory."""

    def row(source: str, shape: tuple[Any, ...], *targets: str) -> Known:
        names = tuple(Target(f"blk.{{}}.{target}.weight") for target in targets)
        return Known(f"{name}.layers.{number}.{source}.weight", names, shape, layers=layers)

    heads, wide = ("queries", "width"), ("feed_forward", "width")
    return (
        row("mlp.down_proj", ("width", "feed_forward"), "ffn_down"),
        *choices(
            together=(
                row("attn.gqkv_proj", (Times(4, "queries"), "width"), "attn_gate", "attn_q", "attn_k", "attn_v"),
                row("attn.o_proj", ("width", "queries"), "attn_output"),
                row("mlp.gate_up_proj", (Times(2, "feed_forward"), "width"), "ffn_gate", "ffn_up"),
            ),
            apart=(
                row("self_attn.gate_proj", heads, "attn_gate"),
                row("self_attn.q_proj", heads, "attn_q"),
                row("self_attn.k_proj", heads, "attn_k"),
                row("self_attn.v_proj", heads, "attn_v"),
                row("self_attn.o_proj", ("width", "queries"), "attn_output"),
                row("mlp.gate_proj", wide, "ffn_gate"),
                row("mlp.up_proj", wide, "ffn_up"),
            ),
        ),
    )


HRM = Family(
    classes=("HrmTextForCausalLM",),
    architecture="hrm_text",
    tensors=(
        decoder.EMBEDDING,
        decoder.OUTPUT,
        tensor("z_L_init", "hrm.z_l_init", "width"),
        *_stack("L_module", "fast", "{}"),
        *_stack("H_module", "slow", "{1}"),
    ),
    sizes=_HrmSizes,
    read_sizes=_read_sizes,
    describe=_describe,
)
FAMILIES = (HRM,)
