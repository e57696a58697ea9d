"""Kimi Linear: delta attention with a rate for every channel in most layers, DeepSeek's latent attention in the others.

Neither kind rotates anything. Sources: `modeling_kimi_linear.py` of transformers, `kimi-linear.cpp` of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quant.convert.base import Family, Known, Layers, Shape, choices, count_layers, in_layers
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, deepseek, moe, recurrent
from quant.convert.families.decoder import layer, linear, norm
from quant.convert.families.deepseek import LatentSizes
from quant.errors import UnsupportedModel

# The class norms queries and keys with 1e-6 and latents with 1e-6, llama.cpp both with what the other norms add: up to
# here no logit shows it.
_LARGEST_EPSILON = 1e-4
_LINEAR, _FULL = "linear_attention", "full_attention"


@dataclass(frozen=True, kw_only=True)
class KimiSizes(LatentSizes):
    """A layer is `remembering`, by a state for each of its heads of `linear_head` values, or `attending`."""

    linear_head: int
    kernel: int
    remembering: Layers
    attending: Layers

    @property
    def inner(self) -> int:
        """The values of all heads of a layer that remembers: of queries, of keys, and of values."""
        return self.heads * self.linear_head


def _usual(config: ModelConfig) -> ModelConfig:
    """The settings as transformers saves them and DeepSeek's classes have them: without `linear_attn_config`."""
    given = config.part("linear_attn_config")
    names = {"head_dim": "linear_head_dim", "num_heads": "linear_num_heads"}
    names["short_conv_kernel_size"] = "linear_conv_kernel_dim"
    found: dict[str, Any] = {new: given.count(old) for old, new in names.items() if given.get(old) is not None}
    if config.get("layer_types") is None and given.values:
        found["layer_types"] = _kinds(given, count_layers(config))
    most = config.get("model_max_length") or config.get("max_position_embeddings")
    renamed = {"n_routed_experts": config.get("num_experts"), "max_position_embeddings": most, "rope_scaling": None}
    return config.changed({**found, **renamed}).filled({"first_k_dense_replace": 1})


def _kinds(given: ModelConfig, layers: int) -> list[str]:
    """The kind of every layer, by two lists of their numbers from 1 on."""
    kinds = [""] * layers
    for key, kind in (("full_attn_layers", _FULL), ("kda_layers", _LINEAR)):
        numbers = given.get(key)
        if not isinstance(numbers, list) or any(type(each) is not int or not 0 < each <= layers for each in numbers):
            raise given.wrong(key, f"a list of numbers of its {layers} layers, from 1 on")
        for number in numbers:
            kinds[number - 1] += kind
    return kinds


def _check(config: ModelConfig) -> None:
    """Raises UnsupportedModel where the model computes what llama.cpp's graph does not."""
    if config.get("q_lora_rank") is not None:
        raise UnsupportedModel("its queries have a rank (`q_lora_rank`), which llama.cpp's `kimi-linear` does not know")
    fixed = {"mla_use_nope": True, "norm_topk_prob": True, "moe_layer_freq": 1, "moe_router_activation_func": "sigmoid"}
    other = [key for key, value in fixed.items() if config.get(key, value) != value]
    if other:
        raise UnsupportedModel(f"it computes otherwise than llama.cpp's `kimi-linear` does (`{other[0]}`)")
    if config.number("rms_norm_eps", 1e-5) > _LARGEST_EPSILON:
        raise UnsupportedModel(
            "its norms add `rms_norm_eps`, which llama.cpp adds to queries, keys and latents as well"
        )
    # Groups of experts are described; the published code reads neither.
    config.without_effect("use_grouped_topk", "num_nextn_predict_layers")


def _read_sizes(config: ModelConfig) -> KimiSizes:
    _check(config)
    usual = _usual(config)
    sizes = deepseek.read_sizes(usual, straight=(count_layers(config),))
    if usual.count("linear_num_heads") != sizes.heads:
        raise UnsupportedModel("its two kinds of attention have different numbers of heads (`linear_num_heads`)")
    kinds = usual.get("layer_types")
    if kinds is None:
        kinds = [_LINEAR if number % 4 or not number else _FULL for number in range(sizes.layers)]
    if not isinstance(kinds, list) or len(kinds) != sizes.layers or any(kind not in (_LINEAR, _FULL) for kind in kinds):
        raise config.wrong("layer_types", f"a list of what {sizes.layers} layers are")
    attending = frozenset(number for number, kind in enumerate(kinds) if kind == _FULL)
    if len(attending) in (0, sizes.layers):
        raise UnsupportedModel("all its layers attend, or none (`layer_types`), and llama.cpp wants both kinds")
    return KimiSizes(
        **vars(sizes),
        linear_head=usual.count("linear_head_dim"),
        kernel=usual.count("linear_conv_kernel_dim"),
        attending=attending,
        remembering=frozenset(range(sizes.layers)) - attending,
    )


def _describe(config: ModelConfig, sizes: KimiSizes) -> dict[str, Any]:
    usual = _usual(config)
    entries = decoder.describe(usual, sizes)
    return {
        **{key: value for key, value in entries.items() if key != "rope.freq_base"},
        # No heads mean a state.
        "attention.head_count_kv": [int(number in sizes.attending) for number in range(sizes.layers)],
        **deepseek.describe_latent(sizes),
        **moe.describe_routed(usual, sizes, "sigmoid"),
        "ssm.conv_kernel": sizes.kernel,
        "kda.head_dim": sizes.linear_head,
    }


def _convolution(name: str) -> tuple[Known, ...]:
    becomes: Shape = (1, "inner", 1, "kernel")
    return (
        layer(f"self_attn.{name}_conv1d.weight", f"ssm_conv1d_{name}.weight", "inner", 1, "kernel", becomes=becomes),
    )


DELTA_ATTENTION = (
    *linear("self_attn.q_proj", "attn_q", "inner", "width", bias=False),
    *linear("self_attn.k_proj", "attn_k", "inner", "width", bias=False),
    *linear("self_attn.v_proj", "attn_v", "inner", "width", bias=False),
    *_convolution("q"),
    *_convolution("k"),
    *_convolution("v"),
    *linear("self_attn.f_a_proj", "ssm_f_a", "linear_head", "width", bias=False),
    *linear("self_attn.f_b_proj", "ssm_f_b", "inner", "linear_head", bias=False),
    *linear("self_attn.b_proj", "ssm_beta", "heads", "width", bias=False),
    layer("self_attn.dt_bias", "ssm_dt.bias", "inner"),
    *norm("self_attn.o_norm", "ssm_norm", "linear_head"),
    *linear("self_attn.o_proj", "attn_output", "width", "inner", bias=False),
)
EXPERTS = (
    *moe.MIXTRAL_EXPERTS,
    *moe.shared("block_sparse_moe.shared_experts"),
    layer("block_sparse_moe.gate.e_score_correction_bias", "exp_probs_b.bias", "experts"),
)
KIMI_LINEAR = Family(
    classes=("KimiLinearForCausalLM",),
    architecture="kimi-linear",
    tensors=(
        *decoder.ENDS,
        *decoder.NORMS,
        *in_layers(
            "attending",
            *deepseek.LATENT_ALONE,
            *linear("self_attn.q_proj", "attn_q", "queries", "width", bias=False),
        ),
        *in_layers(
            "remembering",
            *DELTA_ATTENTION,
            layer("self_attn.A_log", "ssm_a", 1, 1, "heads", 1, transform=recurrent.rates),
            *linear("self_attn.g_a_proj", "ssm_g_a", "linear_head", "width", bias=False),
            *linear("self_attn.g_b_proj", "ssm_g_b", "inner", "linear_head", bias=False),
        ),
        # The second is what transformers saves, and reads again.
        *in_layers(
            "dense",
            *choices(published=decoder.GATED, saved=decoder.renamed(decoder.GATED, mlp="block_sparse_moe")),
        ),
        *in_layers("routed", *EXPERTS),
    ),
    sizes=KimiSizes,
    read_sizes=_read_sizes,
    describe=_describe,
)
FAMILIES = (KIMI_LINEAR,)
