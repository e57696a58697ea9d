"""DBRX: a mixture whose experts lie in one matrix each for gate, up and down.

Sources: `modeling_dbrx.py` of transformers, `dbrx.cpp` of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quant.convert.base import Family, tensor
from quant.convert.config import ModelConfig
from quant.convert.families import decoder
from quant.convert.families.decoder import linear, norm, router
from quant.convert.families.moe import MixtureSizes
from quant.convert.families.unrotated import block, fused
from quant.convert.transforms import Transpose
from quant.errors import UnsupportedModel
from quant.plan import Reversible

# PyTorch's norms add this to the variance, where nothing else is said.
_EPSILON = 1e-5


@dataclass(frozen=True, kw_only=True)
class _DbrxSizes(MixtureSizes):
    @property
    def upon_another(self) -> int:
        """The rows of all experts, one upon another."""
        return self.experts * self.expert


def _usual(config: ModelConfig) -> ModelConfig:
    attention, experts = config.part("attn_config"), config.part("ffn_config")
    names = {
        "hidden_size": "d_model",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
        "max_position_embeddings": "max_seq_len",
    }
    found = {usual: config.get(name) for usual, name in names.items() if config.get(name) is not None}
    if config.get("rope_theta") is None and (base := attention.get("rope_theta")) is not None:
        found["rope_theta"] = base
    return config.changed(
        {
            **found,
            "num_key_value_heads": attention.count("kv_n_heads", 1),
            "intermediate_size": experts.count("ffn_hidden_size"),
        }
    )


def _read_sizes(config: ModelConfig) -> _DbrxSizes:
    sizes, experts = decoder.read_sizes(_usual(config)), config.part("ffn_config")
    return _DbrxSizes(**vars(sizes), experts=experts.count("moe_num_experts"), expert=sizes.feed_forward)


def _describe(config: ModelConfig, sizes: _DbrxSizes) -> dict[str, Any]:
    attention, experts = config.part("attn_config"), config.part("ffn_config")
    activation = experts.part("ffn_act_fn").get("name", "silu")
    if activation != "silu" or experts.get("moe_normalize_expert_weights", 1) not in (1, 1.0):
        raise UnsupportedModel("it computes its experts otherwise than llama.cpp's `dbrx` does (`ffn_config`)")
    usual = _usual(config).changed({"layer_norm_epsilon": _EPSILON})
    clip = attention.get("clip_qkv")
    return {
        **decoder.describe(usual, sizes),
        # llama.cpp wants the entry, and clips by nothing where it is 0.
        "attention.clamp_kqv": 0.0 if clip is None else attention.number("clip_qkv"),
        **decoder.describe_experts(sizes.experts, experts.count("moe_top_k", 1)),
    }


def _turn(sizes: _DbrxSizes) -> Reversible:
    return Transpose(sizes.width, sizes.expert)


def _experts(source: str, target: str) -> Any:
    return decoder.layer(
        f"ffn.experts.mlp.{source}",
        f"{target}_exps.weight",
        "upon_another",
        "width",
        becomes=("experts", "expert", "width"),
    )


DBRX = Family(
    classes=("DbrxForCausalLM",),
    architecture="dbrx",
    tensors=(
        tensor("wte.weight", "token_embd.weight", "vocabulary", "width"),
        tensor("norm_f.weight", "output_norm.weight", "width"),
        decoder.OUTPUT,
        *block(
            "blocks.{}.",
            (
                *norm("norm_attn_norm.norm_1", "attn_norm"),
                *norm("norm_attn_norm.norm_2", "attn_output_norm"),
                *fused("norm_attn_norm.attn.Wqkv"),
                *linear("norm_attn_norm.attn.out_proj", "attn_output", "width", "queries", bias=False),
                router("ffn.router.layer"),
                _experts("w1", "ffn_gate"),
                _experts("v1", "ffn_up"),
                decoder.layer(
                    "ffn.experts.mlp.w2",
                    "ffn_down_exps.weight",
                    "upon_another",
                    "width",
                    becomes=("experts", "width", "expert"),
                    transform=_turn,
                ),
            ),
        ),
    ),
    sizes=_DbrxSizes,
    read_sizes=_read_sizes,
    describe=_describe,
    prefix=r"(transformer\.)?",
    unused=r"blocks\.\d+\.norm_attn_norm\.attn\.rotary_emb\.inv_freq",
)
FAMILIES = (DBRX,)
