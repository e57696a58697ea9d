"""Models that remember by a state beside attention, or instead of it: LFM 2 (short convolutions) and Mamba.

Sources: `modeling_lfm2.py` and `modeling_mamba.py` of transformers, `models/lfm2.cpp` and `mamba.cpp` of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from quant.convert.base import Family, Layers, Sizes, Times, count_layers, headless, in_layers, switched, tensor
from quant.convert.config import ModelConfig
from quant.convert.families import decoder
from quant.convert.families.decoder import DecoderSizes, layer, linear, norm
from quant.convert.transforms import NegativeExponential
from quant.errors import UnsupportedModel
from quant.plan import Reversible

_ATTENTION, _CONVOLUTION = "full_attention", "conv"


@dataclass(frozen=True, kw_only=True)
class Lfm2Sizes(DecoderSizes):
    """The sizes of LFM 2: a layer attends, or it convolves over `kernel` tokens."""

    kernel: int
    attending: Layers
    convolving: Layers


def _read_lfm2_sizes(config: ModelConfig) -> Lfm2Sizes:
    wide = config.count("intermediate_size", config.count("block_ff_dim", 12288))
    if config.flag("block_auto_adjust_ff_dim", True):
        step = config.count("block_multiple_of", 256)
        wide = -(-int(config.number("block_ffn_dim_multiplier", 1.0) * int(2 * wide / 3)) // step) * step
    config.without_effect("block_ffn_dim_multiplier", "block_multiple_of")
    sizes = decoder.read_sizes(config.changed({"intermediate_size": wide}))
    attending, kernel = _attending(config, sizes.layers), config.count("conv_L_cache", 3)
    if kernel == 1 or len(attending) == sizes.layers:
        raise UnsupportedModel(
            "it remembers nothing beside attention (`layer_types`, `conv_L_cache`): llama.cpp needs it"
        )
    return Lfm2Sizes(
        **vars(sizes),
        kernel=kernel,
        attending=attending,
        convolving=frozenset(range(sizes.layers)) - attending,
    )


def _attending(config: ModelConfig, layers: int) -> Layers:
    """The layers of LFM 2 that attend, as `layer_types` or `full_attn_idxs` says."""
    kinds, indices = config.get("layer_types"), config.get("full_attn_idxs")
    if kinds is None and isinstance(indices, list):
        kinds = [_ATTENTION if number in indices else _CONVOLUTION for number in range(layers)]
    known = isinstance(kinds, list) and all(kind in (_ATTENTION, _CONVOLUTION) for kind in kinds)
    if not known or len(kinds) != layers or _ATTENTION not in kinds:
        raise config.wrong("layer_types", f"a list of what {layers} layers are")
    return frozenset(number for number, kind in enumerate(kinds) if kind == _ATTENTION)


def _describe_lfm2(config: ModelConfig, sizes: Lfm2Sizes) -> dict[str, Any]:
    if config.flag("conv_bias"):
        raise UnsupportedModel("its convolutions have biases, which llama.cpp does not know")
    return {
        **decoder.describe(config, sizes),
        "attention.head_count_kv": [sizes.key_heads * (number in sizes.attending) for number in range(sizes.layers)],
        "attention.layer_norm_rms_epsilon": config.number("norm_eps", 1e-5),
        "shortconv.l_cache": sizes.kernel,
    }


LFM2_MIXERS = (
    decoder.EMBEDDING,
    decoder.OUTPUT,
    tensor("embedding_norm.weight", "token_embd_norm.weight", "width"),
    *norm("operator_norm", "attn_norm"),
    *norm("ffn_norm", "ffn_norm"),
    *in_layers(
        "attending",
        *linear("self_attn.q_proj", "attn_q", "queries", "width", bias=False),
        *linear("self_attn.k_proj", "attn_k", "keys", "width", bias=False),
        *linear("self_attn.v_proj", "attn_v", "keys", "width", bias=False),
        *linear("self_attn.out_proj", "attn_output", "width", "queries", bias=False),
        *norm("self_attn.q_layernorm", "attn_q_norm", "head"),
        *norm("self_attn.k_layernorm", "attn_k_norm", "head"),
    ),
    *in_layers(
        "convolving",
        *linear("conv.in_proj", "shortconv.in_proj", Times(3, "width"), "width", bias=False),
        *linear("conv.out_proj", "shortconv.out_proj", "width", "width", bias=False),
        layer("conv.conv.weight", "shortconv.conv.weight", "width", 1, "kernel", becomes=("width", "kernel")),
    ),
)
LFM2_GATED = (
    *linear("feed_forward.w1", "ffn_gate", "feed_forward", "width", bias=False),
    *linear("feed_forward.w2", "ffn_down", "width", "feed_forward", bias=False),
    *linear("feed_forward.w3", "ffn_up", "feed_forward", "width", bias=False),
)


def _describe_bidirectional(config: ModelConfig, sizes: Lfm2Sizes) -> dict[str, Any]:
    """A token's convolution has as many tokens behind as before it."""
    entries = _describe_lfm2(config, sizes)
    if sizes.kernel % 2 == 0:
        raise UnsupportedModel(f"its convolutions are {sizes.kernel} tokens long, an even number, without a middle")
    return {**entries, "attention.causal": False}


LFM2 = Family(
    classes=("Lfm2ForCausalLM", "LFM2ForCausalLM"),
    architecture="lfm2",
    tensors=(*LFM2_MIXERS, *LFM2_GATED),
    sizes=Lfm2Sizes,
    read_sizes=_read_lfm2_sizes,
    describe=_describe_lfm2,
    tied=True,
)
# Published for embeddings without the output; the second by tokens that see each other in both directions.
BARE_LFM2 = replace(headless(LFM2), classes=("Lfm2Model",), encoder=True)
BIDIRECTIONAL_LFM2 = replace(BARE_LFM2, classes=("Lfm2BidirectionalModel",), describe=_describe_bidirectional)


@dataclass(frozen=True, kw_only=True)
class _MambaSizes(Sizes):
    """A mixer has `inner` channels of `state` values each; time steps come from `rank` values."""

    inner: int
    state: int
    rank: int
    kernel: int

    @property
    def selection(self) -> int:
        """The values that each token sets by itself: time step, input and output of the state."""
        return self.rank + 2 * self.state


def _read_mamba_sizes(config: ModelConfig) -> _MambaSizes:
    width = config.count("hidden_size")
    inner = config.count("intermediate_size", config.count("expand", 2) * width)
    if inner != 2 * width:
        raise UnsupportedModel("its inner size is not twice its width, as llama.cpp needs it")
    rank = config.get("time_step_rank")
    rank = -(-width // 16) if rank in (None, "auto") else config.count("time_step_rank")
    return _MambaSizes(
        vocabulary=config.count("vocab_size"),
        width=width,
        layers=count_layers(config),
        inner=inner,
        state=config.count("state_size", 16),
        rank=rank,
        kernel=config.count("conv_kernel", 4),
    )


def rates(sizes: Sizes) -> Reversible:
    """The decay rates of a state, which are stored as logarithms."""
    return NegativeExponential()


def describe_states(config: ModelConfig, sizes: Sizes) -> dict[str, Any]:
    """Entries of a model of either kind of Mamba's mixers, with nothing beside them."""
    return {
        "vocab_size": sizes.vocabulary,
        # A state has no length; this is what llama.cpp's own converter writes.
        "context_length": 1 << 20,
        "embedding_length": sizes.width,
        "block_count": sizes.layers,
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "attention.layer_norm_rms_epsilon": config.number("layer_norm_epsilon", 1e-5),
    }


def _describe_mamba(config: ModelConfig, sizes: _MambaSizes) -> dict[str, Any]:
    if config.flag("use_bias"):
        raise UnsupportedModel("its projections have biases, which llama.cpp does not know")
    return {
        **describe_states(config, sizes),
        "ssm.conv_kernel": sizes.kernel,
        "ssm.inner_size": sizes.inner,
        "ssm.state_size": sizes.state,
        "ssm.time_step_rank": sizes.rank,
        "ssm.dt_b_c_rms": False,
    }


MAMBA = Family(
    classes=("MambaForCausalLM",),
    architecture="mamba",
    tensors=(
        tensor("embeddings.weight", "token_embd.weight", "vocabulary", "width"),
        decoder.OUTPUT,
        *decoder.final_norm("norm_f"),
        *norm("norm", "attn_norm"),
        *linear("mixer.in_proj", "ssm_in", Times(2, "inner"), "width", bias=False),
        layer("mixer.conv1d.weight", "ssm_conv1d.weight", "inner", 1, "kernel", becomes=("inner", "kernel")),
        *switched("use_conv_bias", layer("mixer.conv1d.bias", "ssm_conv1d.bias", "inner")),
        *linear("mixer.x_proj", "ssm_x", "selection", "inner", bias=False),
        *linear("mixer.dt_proj", "ssm_dt", "inner", "rank", bias=True),
        layer("mixer.A_log", "ssm_a", "inner", "state", transform=rates),
        layer("mixer.D", "ssm_d", "inner"),
        *linear("mixer.out_proj", "ssm_out", "width", "inner", bias=False),
    ),
    sizes=_MambaSizes,
    read_sizes=_read_mamba_sizes,
    describe=_describe_mamba,
    prefix=r"(backbone\.)?",
    tied=True,
)
# Two epsilons of norms may differ by this much before a logit does.
_NOT_NOTICED = 1e-5


def _describe_falcon(config: ModelConfig, sizes: _MambaSizes) -> dict[str, Any]:
    """Falcon Mamba norms what each token sets by itself, with an epsilon of its own that llama.cpp does not know."""
    own, outer = config.number("mixer_rms_eps", 1e-6), config.number("layer_norm_epsilon", 1e-5)
    if abs(own - outer) > _NOT_NOTICED:
        raise UnsupportedModel("its mixers norm with another epsilon than its layers (`mixer_rms_eps`)")
    return {**_describe_mamba(config, sizes), "ssm.dt_b_c_rms": True}


FALCON_MAMBA = replace(MAMBA, classes=("FalconMambaForCausalLM",), describe=_describe_falcon)


def _usual_mamba(config: ModelConfig) -> ModelConfig:
    """The settings of the first code by the names of transformers; the rows of its embedding are whole steps."""
    mixers = config.part("ssm_cfg").values
    if mixers or not config.flag("rms_norm", True) or config.get("attn_layer_idx") or config.get("d_intermediate"):
        raise UnsupportedModel("its layers are built otherwise than those of the first Mamba (`ssm_cfg`)")
    config.without_effect("fused_add_norm", "residual_in_fp32", "attn_cfg")
    step = config.count("pad_vocab_size_multiple", 8)
    return config.changed(
        {
            "hidden_size": config.count("d_model"),
            "num_hidden_layers": config.count("n_layer"),
            "vocab_size": -(-config.count("vocab_size") // step) * step,
        }
    )


FIRST_MAMBA = replace(
    MAMBA,
    classes=("MambaLMHeadModel",),
    tensors=(tensor("embedding.weight", "token_embd.weight", "vocabulary", "width"), *MAMBA.tensors[1:]),
    read_sizes=lambda config: _read_mamba_sizes(_usual_mamba(config)),
    describe=lambda config, sizes: _describe_mamba(_usual_mamba(config), sizes),
)
FAMILIES = (LFM2, BARE_LFM2, BIDIRECTIONAL_LFM2, MAMBA, FALCON_MAMBA, FIRST_MAMBA)
