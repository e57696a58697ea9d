"""Models that remember by a state beside attention, or instead of it: LFM 2 (short convolutions) and Mamba.

Sources: `modeling_lfm2.py` and `modeling_mamba.py` of transformers, `models/lfm2.cpp` and `mamba.cpp` of llama.cpp.
"""

from __future__ import annotations

from typing import Any

from quant.convert.base import Family, Known, Sizes
from quant.convert.config import Config
from quant.convert.families import decoder
from quant.convert.families.decoder import layer, linear, norm
from quant.convert.transforms import NegativeExponential
from quant.errors import UnsupportedModel
from quant.gguf.header import MAX_BLOCKS

_ATTENTION, _CONVOLUTION = "full_attention", "conv"


def _read_lfm2_sizes(config: Config) -> dict[str, int]:
    wide = config.count("intermediate_size", config.count("block_ff_dim", 12288))
    if config.flag("block_auto_adjust_ff_dim", True):
        step = config.count("block_multiple_of", 256)
        wide = -(-int(config.number("block_ffn_dim_multiplier", 1.0) * int(2 * wide / 3)) // step) * step
    sizes = decoder.read_sizes(config.changed({"intermediate_size": wide}))
    attending = masks(_kinds(config, sizes["layers"], _CONVOLUTION))
    kernel = config.count("conv_L_cache", 3)
    return {**sizes, **attending, "one": 1, "three_width": 3 * sizes["width"], "kernel": kernel}


def _kinds(config: Config, layers: int, other: str) -> list[bool]:
    """Which layers attend, as `layer_types` says; those that do not are of the kind `other`."""
    kinds = config.get("layer_types")
    if kinds is None and isinstance(config.get("full_attn_idxs"), list):
        attending = config.get("full_attn_idxs")
        kinds = [_ATTENTION if number in attending else other for number in range(min(layers, MAX_BLOCKS))]
    known = isinstance(kinds, list) and all(kind in (_ATTENTION, other) for kind in kinds)
    if not known or len(kinds) != layers or _ATTENTION not in kinds:
        raise config.wrong("layer_types", f"a list of what {layers} layers are")
    return [kind == _ATTENTION for kind in kinds]


def masks(attending: list[bool]) -> dict[str, int]:
    """The sizes whose bits say which layers attend, and which do not."""
    mask = sum(1 << layer for layer, attends in enumerate(attending) if attends)
    return {"attending": mask, "others": (1 << len(attending)) - 1 - mask}


def _describe_lfm2(config: Config, sizes: Sizes) -> dict[str, Any]:
    if config.flag("conv_bias"):
        raise UnsupportedModel("its convolutions have biases, which llama.cpp does not know")
    kinds = _kinds(config, sizes["layers"], _CONVOLUTION)
    return {
        **decoder.describe(config, sizes),
        "attention.head_count_kv": [sizes["shared"] if attends else 0 for attends in kinds],
        "attention.layer_norm_rms_epsilon": config.number("norm_eps", 1e-5),
        "shortconv.l_cache": sizes["kernel"],
    }


def some(where: str, *tensors: Known) -> tuple[Known, ...]:
    """Tensors that only some layers have."""
    return tuple(known._replace(where=where) for known in tensors)


LFM2 = Family(
    classes=("Lfm2ForCausalLM",),
    architecture="lfm2",
    tensors=(
        decoder.EMBEDDING,
        decoder.OUTPUT,
        Known("embedding_norm.weight", "token_embd_norm.weight", ("width",)),
        *norm("operator_norm", "attn_norm"),
        *norm("ffn_norm", "ffn_norm"),
        *linear("feed_forward.w1", "ffn_gate", "feed_forward", "width", bias=False),
        *linear("feed_forward.w2", "ffn_down", "width", "feed_forward", bias=False),
        *linear("feed_forward.w3", "ffn_up", "feed_forward", "width", bias=False),
        *some(
            "attending",
            *linear("self_attn.q_proj", "attn_q", "queries", "width", bias=False),
            *linear("self_attn.k_proj", "attn_k", "keys", "width", bias=False),
            *linear("self_attn.v_proj", "attn_v", "keys", "width", bias=False),
            *linear("self_attn.out_proj", "attn_output", "width", "queries", bias=False),
            *norm("self_attn.q_layernorm", "attn_q_norm", "head"),
            *norm("self_attn.k_layernorm", "attn_k_norm", "head"),
        ),
        *some(
            "others",
            *linear("conv.in_proj", "shortconv.in_proj", "three_width", "width", bias=False),
            *linear("conv.out_proj", "shortconv.out_proj", "width", "width", bias=False),
            layer("conv.conv.weight", "shortconv.conv.weight", "width", "one", "kernel")._replace(
                result=("width", "kernel")
            ),
        ),
    ),
    read_sizes=_read_lfm2_sizes,
    describe=_describe_lfm2,
    tied=True,
)


def _read_mamba_sizes(config: Config) -> dict[str, int]:
    width = config.count("hidden_size")
    inner = config.count("intermediate_size", 2 * width)
    if inner != 2 * width:
        raise UnsupportedModel("its inner size is not twice its width, as llama.cpp needs it")
    rank = config.get("time_step_rank")
    rank = -(-width // 16) if rank in (None, "auto") else config.count("time_step_rank")
    state = config.count("state_size", 16)
    return {
        **{"vocabulary": config.count("vocab_size"), "width": width, "layers": config.count("num_hidden_layers")},
        **{"inner": inner, "two_inner": 2 * inner, "rank": rank, "state": state, "selection": rank + 2 * state},
        **{"kernel": config.count("conv_kernel", 4), "one": 1},
    }


def describe_states(config: Config, sizes: Sizes) -> dict[str, Any]:
    """Entries of a model of either kind of Mamba's mixers, with nothing beside them."""
    return {
        "vocab_size": sizes["vocabulary"],
        # A state has no length; this is what llama.cpp's own converter writes.
        "context_length": 1 << 20,
        "embedding_length": sizes["width"],
        "block_count": sizes["layers"],
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "attention.layer_norm_rms_epsilon": config.number("layer_norm_epsilon", 1e-5),
    }


def _describe_mamba(config: Config, sizes: Sizes) -> dict[str, Any]:
    if config.flag("use_bias"):
        raise UnsupportedModel("its projections have biases, which llama.cpp does not know")
    return {
        **describe_states(config, sizes),
        "ssm.conv_kernel": sizes["kernel"],
        "ssm.inner_size": sizes["inner"],
        "ssm.state_size": sizes["state"],
        "ssm.time_step_rank": sizes["rank"],
        "ssm.dt_b_c_rms": False,
    }


MAMBA = Family(
    classes=("MambaForCausalLM",),
    architecture="mamba",
    tensors=(
        Known("embeddings.weight", "token_embd.weight", ("vocabulary", "width")),
        decoder.OUTPUT,
        *decoder.final_norm("norm_f"),
        *norm("norm", "attn_norm"),
        *linear("mixer.in_proj", "ssm_in", "two_inner", "width", bias=False),
        layer("mixer.conv1d.weight", "ssm_conv1d.weight", "inner", "one", "kernel")._replace(
            result=("inner", "kernel")
        ),
        layer("mixer.conv1d.bias", "ssm_conv1d.bias", "inner"),
        *linear("mixer.x_proj", "ssm_x", "selection", "inner", bias=False),
        *linear("mixer.dt_proj", "ssm_dt", "inner", "rank", bias=True),
        layer("mixer.A_log", "ssm_a", "inner", "state", transform="rates"),
        layer("mixer.D", "ssm_d", "inner"),
        *linear("mixer.out_proj", "ssm_out", "width", "inner", bias=False),
    ),
    read_sizes=_read_mamba_sizes,
    describe=_describe_mamba,
    transforms=lambda sizes: {"rates": NegativeExponential()},
    prefix=r"(backbone\.)?",
    tied=True,
)
FAMILIES = (LFM2, MAMBA)
