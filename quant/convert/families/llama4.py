"""Llama 4, its language model: experts in all layers or every other one, and beside them one that always answers.

Gate and up lie side by side in matrices that are stored turned. In three of four layers attention sees chunks of 8,192
tokens, in the fourth all and nothing is rotated; llama.cpp takes that, and how attention sharpens far behind, for
granted. Sources: `modeling_llama4.py` of transformers, `llama4.cpp` of llama.cpp.
"""

from __future__ import annotations

from typing import Any

from quant.convert.base import Family, Known, Sizes
from quant.convert.config import Config
from quant.convert.families import decoder, moe, rotary
from quant.convert.families.decoder import LAYER, router
from quant.convert.families.recurrent import some
from quant.convert.transforms import TakeTransposed, Transpose
from quant.errors import UnsupportedModel
from quant.plan import Transform

# What llama.cpp does whatever the file says, and with how many experts it leaves out the norms of queries and keys.
_FIXED = {"attention_chunk_size": 8192, "floor_scale": 8192, "attn_scale": 0.1, "no_rope_layer_interval": 4}
_WITHOUT_NORMS = 128


def _read_sizes(config: Config) -> dict[str, int]:
    expert, layers = config.count("intermediate_size"), config.count("num_hidden_layers")
    step = config.count("interleave_moe_layer_step", 1)
    mixed = [number for number in range(layers) if (number + 1) % step == 0]
    if config.get("moe_layers") not in (None, mixed):
        raise UnsupportedModel("it has experts in other layers than every so many")
    wide = config.count("intermediate_size_mlp")
    return {
        **decoder.read_sizes(config.changed({"intermediate_size": wide})),
        **{"experts": config.count("num_local_experts"), "expert": expert, "two_expert": 2 * expert},
        **{"shared_expert": expert, "step": step},
        **{"mixtures": sum(1 << number for number in mixed), "plain": (1 << layers) - 1 - sum(1 << n for n in mixed)},
    }


def _describe(config: Config, sizes: Sizes) -> dict[str, Any]:
    other = [key for key, value in _FIXED.items() if config.values.get(key, value) != value]
    layers = config.get("no_rope_layers")
    if layers and layers != [int((number + 1) % 4 != 0) for number in range(sizes["layers"])]:
        other.append("no_rope_layers")
    if config.flag("use_qk_norm", True) is (sizes["experts"] == _WITHOUT_NORMS):
        other.append("use_qk_norm")
    if other or not config.flag("attn_temperature_tuning", True):
        raise UnsupportedModel(
            f"its attention is another than llama.cpp's (`{[*other, 'attn_temperature_tuning'][0]}`)"
        )
    return {
        **decoder.describe(config, sizes),
        **decoder.describe_experts(sizes["experts"], config.count("num_experts_per_tok", 1)),
        "expert_feed_forward_length": sizes["expert"],
        "interleave_moe_layer_step": sizes["step"],
    }


def _transforms(sizes: Sizes) -> dict[str, Transform]:
    width, expert = sizes["width"], sizes["expert"]
    return {
        "gate": TakeTransposed(width, expert, 0),
        "up": TakeTransposed(width, expert, expert),
        "down": Transpose(width, expert),
    }


_PLAIN = tuple(known._replace(source=known.source.replace("mlp.", "feed_forward.")) for known in decoder.GATED)
_EXPERTS = LAYER + "feed_forward.experts."
LLAMA4 = Family(
    classes=("Llama4ForCausalLM",),
    architecture="llama4",
    tensors=(
        *(decoder.EMBEDDING, *decoder.final_norm(), decoder.OUTPUT, *decoder.NORMS, *decoder.ATTENTION),
        *some("plain", *_PLAIN),
        *some("mixtures", *moe.shared("feed_forward.shared_expert"), router("feed_forward.router")),
        *some(
            "mixtures",
            Known(
                f"{_EXPERTS}gate_up_proj",
                "blk.{}.ffn_gate_exps.weight blk.{}.ffn_up_exps.weight",
                ("experts", "width", "two_expert"),
                transform="gate up",
                result=("experts", "expert", "width"),
            ),
            Known(
                f"{_EXPERTS}down_proj",
                "blk.{}.ffn_down_exps.weight",
                ("experts", "expert", "width"),
                transform="down",
                result=("experts", "width", "expert"),
            ),
        ),
    ),
    read_sizes=_read_sizes,
    describe=_describe,
    transforms=_transforms,
    computed=rotary.tables,
)
FAMILIES = (LLAMA4,)
