"""Models with mixers of Mamba's second kind: Mamba 2 itself, and with attention beside them Granite 4 and Falcon H1.

Sources: `modeling_mamba2.py`, `modeling_granitemoehybrid.py` and `modeling_falcon_h1.py` of transformers, `mamba2.cpp`,
`granite-hybrid.cpp` and `falcon-h1.cpp` of llama.cpp. Falcon H1 multiplies in many places by fixed numbers, which
llama.cpp wants in the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quant.convert.base import Family, Known, Layers, Sizes, Target, Times, count_layers, in_layers, switched, tensor
from quant.convert.config import ModelConfig
from quant.convert.families import decoder, llama, moe, rotary
from quant.convert.families.decoder import LAYER, DecoderSizes, layer, linear, norm
from quant.convert.families.moe import MixtureSizes
from quant.convert.families.recurrent import describe_states, rates
from quant.convert.transforms import Scale, ScaleBlocks
from quant.errors import MalformedFile, UnsupportedModel
from quant.gguf.check import MAX_BLOCKS
from quant.plan import Reversible


@dataclass(frozen=True, kw_only=True)
class MixerSizes(Sizes):
    """The sizes of a mixer: an inner width of `states` heads in `groups`, each with a state of `state` values."""

    inner: int
    states: int
    groups: int
    state: int
    kernel: int

    @property
    def group(self) -> int:
        """The width of a group."""
        return self.inner // self.groups

    @property
    def convolved(self) -> int:
        """The channels of the convolution: the inner width, and inputs and outputs of the states."""
        return self.inner + 2 * self.groups * self.state

    @property
    def projected(self) -> int:
        """The rows of the matrix that makes a gate, the convolution's channels and time steps of the width."""
        return self.inner + self.convolved + self.states


def mixer(source: str, normed: bool = True, switch: str = "mamba_conv_bias") -> tuple[Known, ...]:
    """The tensors of a mixer, whose convolution has a bias unless the setting `switch` is false.

    llama.cpp wants some in another shape, with their values in the same order.
    """
    return (
        *linear(f"{source}.in_proj", "ssm_in", "projected", "width", bias=False),
        layer(
            f"{source}.conv1d.weight", "ssm_conv1d.weight", "convolved", 1, "kernel", becomes=("convolved", "kernel")
        ),
        *switched(switch, layer(f"{source}.conv1d.bias", "ssm_conv1d.bias", "convolved")),
        layer(f"{source}.dt_bias", "ssm_dt.bias", "states"),
        layer(f"{source}.A_log", "ssm_a", "states", transform=rates, becomes=("states", 1)),
        layer(f"{source}.D", "ssm_d", "states", becomes=("states", 1)),
        layer(f"{source}.norm.weight", "ssm_norm.weight", "inner", required=normed, becomes=("groups", "group")),
        *linear(f"{source}.out_proj", "ssm_out", "width", "inner", bias=False),
    )


def read_mixer_sizes(config: ModelConfig, sizes: Sizes, inner: int, states: int, prefix: str = "mamba_") -> MixerSizes:
    """The sizes of a mixer in a model of `sizes`; `prefix` is what the names in `config.json` begin with."""
    names = ("n_groups", "d_state", "d_conv") if prefix else ("n_groups", "state_size", "conv_kernel")
    groups, state, kernel = (config.count(prefix + name) for name in names)
    if inner % states or inner % groups:
        raise MalformedFile(f"an inner width of {inner} cannot be shared by {states} states in {groups} groups")
    lengths = [config.get(name) for name in ("mamba_d_head",) if prefix]
    if any(type(each) is int and each * states != inner for each in lengths):
        raise MalformedFile(f"{states} states of {lengths[0]} values do not make up an inner width of {inner}")
    # transformers writes infinity as an object since its version 5.
    limits = (None, [0.0, float("inf")], [0.0, {"__float__": "Infinity"}])
    if config.get("time_step_limit") not in limits:
        raise UnsupportedModel("it limits its time steps, which llama.cpp does not do")
    return MixerSizes(
        vocabulary=sizes.vocabulary,
        width=sizes.width,
        layers=sizes.layers,
        inner=inner,
        states=states,
        groups=groups,
        state=state,
        kernel=kernel,
    )


def describe_mixer(sizes: MixerSizes) -> dict[str, Any]:
    """The entries of a model with such mixers."""
    return {
        "ssm.conv_kernel": sizes.kernel,
        "ssm.inner_size": sizes.inner,
        "ssm.state_size": sizes.state,
        "ssm.time_step_rank": sizes.states,
        "ssm.group_count": sizes.groups,
    }


def _read_mamba2_sizes(config: ModelConfig) -> MixerSizes:
    width, layers = config.count("hidden_size"), count_layers(config)
    sizes = Sizes(vocabulary=config.count("vocab_size"), width=width, layers=layers)
    inner = width * config.count("expand", 2)
    config.without_effect("head_dim")
    return read_mixer_sizes(config, sizes, inner, config.count("num_heads"), prefix="")


def _describe_mamba2(config: ModelConfig, sizes: MixerSizes) -> dict[str, Any]:
    return {**describe_states(config, sizes), **describe_mixer(sizes)}


MAMBA2 = Family(
    classes=("Mamba2ForCausalLM",),
    architecture="mamba2",
    tensors=(
        tensor("embeddings.weight", "token_embd.weight", "vocabulary", "width"),
        decoder.OUTPUT,
        *decoder.final_norm("norm_f"),
        *norm("norm", "attn_norm"),
        *mixer("mixer", switch="use_conv_bias"),
    ),
    sizes=MixerSizes,
    read_sizes=_read_mamba2_sizes,
    describe=_describe_mamba2,
    prefix=r"(backbone\.)?",
)


@dataclass(frozen=True, kw_only=True)
class _GraniteSizes(MixtureSizes, MixerSizes):
    """A layer is `mixing` or `attending`. The attending layers are all `rotated_layers`, or all `unrotated_layers`.

    All layers have experts (`routed`), or all are `dense`.
    """

    mixing: Layers
    attending: Layers
    rotated_layers: Layers
    unrotated_layers: Layers
    routed: Layers
    dense: Layers


def _attending(config: ModelConfig, layers: int) -> Layers:
    """The layers of Granite that attend; the others are mixers."""
    known = {"attention": True, "full_attention": True, "mamba": False, "linear_attention": False}
    kinds = config.get("layer_types") or config.get("layers_block_type")
    fine = isinstance(kinds, list) and len(kinds) == layers <= MAX_BLOCKS
    if not fine or any(not isinstance(kind, str) or kind not in known for kind in kinds):
        raise config.wrong("layer_types", f"a list of what {layers} layers are")
    return frozenset(number for number, kind in enumerate(kinds) if known[kind])


def _read_granite_sizes(config: ModelConfig) -> _GraniteSizes:
    """Without experts, the part that is shared by all is the only one."""
    experts = config.count("num_local_experts") if config.get("num_local_experts") else 0
    shared = config.count("shared_intermediate_size")
    wide = config.count("intermediate_size") if experts else shared
    sizes = decoder.read_sizes(config.changed({"intermediate_size": wide}))
    inner = sizes.width * config.count("mamba_expand", 2)
    mixers = read_mixer_sizes(config, sizes, inner, config.count("mamba_n_heads"))
    if inner != 2 * sizes.width:
        raise UnsupportedModel("its inner size is not twice its width, as llama.cpp needs it")
    every: Layers = frozenset(range(sizes.layers))
    none: Layers = frozenset()
    attending = _attending(config, sizes.layers)
    rotates = config.get("position_embedding_type") == "rope"
    return _GraniteSizes(
        **(vars(sizes) | vars(mixers)),
        experts=experts,
        expert=sizes.feed_forward,
        shared_expert=shared,
        mixing=every - attending,
        attending=attending,
        rotated_layers=attending if rotates else none,
        unrotated_layers=none if rotates else attending,
        routed=every if experts else none,
        dense=none if experts else every,
    )


def _describe_granite(config: ModelConfig, sizes: _GraniteSizes) -> dict[str, Any]:
    experts = {}
    if sizes.experts:
        experts = decoder.describe_experts(sizes.experts, config.count("num_experts_per_tok"))
        experts["expert_shared_feed_forward_length"] = sizes.shared_expert
    config.without_effect("num_experts_per_tok")
    return {
        **llama.describe_granite(config, sizes),
        **describe_mixer(sizes),
        "attention.head_count_kv": [sizes.key_heads * (number in sizes.attending) for number in range(sizes.layers)],
        # llama.cpp reads here whether queries and keys are rotated.
        "rope.scaling.finetuned": bool(sizes.rotated_layers),
        **experts,
    }


_ONE_EXPERT = (
    Known(
        LAYER + "shared_mlp.input_linear.weight",
        (Target("blk.{}.ffn_gate.weight"), Target("blk.{}.ffn_up.weight")),
        (Times(2, "feed_forward"), "width"),
    ),
    layer("shared_mlp.output_linear.weight", "ffn_down.weight", "width", "feed_forward"),
)
_BASE = (*decoder.ENDS, *decoder.NORMS)


def _read_dense_sizes(config: ModelConfig) -> DecoderSizes:
    wide = config.count("shared_intermediate_size")
    return decoder.read_sizes(config.changed({"intermediate_size": wide}))


# Without mixers and experts, llama.cpp's `granite` (Granite 3) computes the same.
_GRANITE_DENSE = Family(
    classes=(),
    architecture="granite",
    tensors=(*_BASE, *decoder.paired(decoder.ATTENTION), *_ONE_EXPERT),
    sizes=DecoderSizes,
    read_sizes=_read_dense_sizes,
    describe=llama.describe_granite,
    computed=rotary.tables,
)


_OF_MIXERS = (
    "mamba_conv_bias",
    "mamba_d_conv",
    "mamba_d_head",
    "mamba_d_state",
    "mamba_expand",
    "mamba_n_groups",
    "mamba_n_heads",
    "mamba_proj_bias",
    "time_step_limit",
)


def _without_mixers(config: ModelConfig) -> Family[Any] | None:
    """Some of Granite 4's small models have nothing but attention, which llama.cpp's hybrids cannot be."""
    layers = count_layers(config)
    if len(_attending(config, layers)) < layers:
        return None
    if config.get("position_embedding_type") != "rope":
        raise UnsupportedModel("all its layers attend, and none has positions")
    config.without_effect(*_OF_MIXERS)
    return moe.GRANITE_MOE if config.get("num_local_experts") else _GRANITE_DENSE


GRANITE_HYBRID = Family(
    classes=("GraniteMoeHybridForCausalLM",),
    architecture="granitehybrid",
    tensors=(
        *_BASE,
        *in_layers("rotated_layers", *decoder.paired(decoder.ATTENTION)),
        *in_layers("unrotated_layers", *decoder.ATTENTION),
        *in_layers("mixing", *mixer("mamba")),
        *in_layers("routed", *moe.GRANITE_EXPERTS),
        *in_layers("dense", *_ONE_EXPERT),
    ),
    sizes=_GraniteSizes,
    read_sizes=_read_granite_sizes,
    describe=_describe_granite,
    instead=_without_mixers,
)


def _numbers(config: ModelConfig, key: str, count: int) -> tuple[float, ...]:
    values = config.get(key)
    if values is None:
        return (1.0,) * count
    if not isinstance(values, list) or len(values) != count or any(type(each) not in (int, float) for each in values):
        raise config.wrong(key, f"{count} numbers")
    return tuple(float(each) for each in values)


@dataclass(frozen=True)
class _Multipliers:
    """The numbers by which Falcon H1 multiplies, by the weights that get them."""

    embedding: float
    output: float
    queries: float
    keys: float
    attended: float
    gate: float
    down: float
    mixer: tuple[float, ...]
    mixed: float


@dataclass(frozen=True, kw_only=True)
class _FalconSizes(DecoderSizes, MixerSizes):
    multipliers: _Multipliers


def _read_falcon_sizes(config: ModelConfig) -> _FalconSizes:
    width = config.count("hidden_size")
    inner = config.count("mamba_d_ssm", width * config.count("mamba_expand", 2))
    if config.flag("mamba_rms_norm") and config.flag("mamba_norm_before_gate", True):
        raise UnsupportedModel("its mixers norm before they gate, and llama.cpp does so after")
    sizes = decoder.read_sizes(config)
    mixers = read_mixer_sizes(config, sizes, inner, config.count("mamba_n_heads"))
    return _FalconSizes(**(vars(sizes) | vars(mixers)), multipliers=_read_multipliers(config))


def _read_multipliers(config: ModelConfig) -> _Multipliers:
    attention, mixer = config.number("attention_in_multiplier", 1.0), config.number("ssm_in_multiplier", 1.0)
    embedding, output = config.number("embedding_multiplier", 1.0), config.number("lm_head_multiplier", 1.0)
    gate, down = _numbers(config, "mlp_multipliers", 2)
    if config.flag("tie_word_embeddings") and embedding != output:
        raise UnsupportedModel("it multiplies its one embedding by one number going in and by another coming out")
    return _Multipliers(
        embedding=embedding,
        output=output,
        queries=attention,
        keys=attention * config.number("key_multiplier", 1.0),
        attended=config.number("attention_out_multiplier", 1.0),
        gate=gate,
        down=down,
        mixer=tuple(mixer * each for each in _numbers(config, "ssm_multipliers", 5)),
        mixed=config.number("ssm_out_multiplier", 1.0),
    )


def _scale_mixer(sizes: _FalconSizes) -> Reversible:
    """Five blocks of rows, each with its number: gate, input, inputs and outputs of the states, time steps."""
    selected = sizes.groups * sizes.state
    return ScaleBlocks((sizes.inner, sizes.inner, selected, selected, sizes.states), sizes.multipliers.mixer)


# By the names of tensors in GGUF.
_SCALES: dict[str, Callable[[_FalconSizes], Reversible]] = {
    "token_embd.weight": lambda sizes: Scale(sizes.multipliers.embedding),
    "output.weight": lambda sizes: Scale(sizes.multipliers.output),
    "blk.{}.attn_q.weight": lambda sizes: Scale(sizes.multipliers.queries),
    "blk.{}.attn_k.weight": lambda sizes: Scale(sizes.multipliers.keys),
    "blk.{}.attn_v.weight": lambda sizes: Scale(sizes.multipliers.queries),
    "blk.{}.attn_output.weight": lambda sizes: Scale(sizes.multipliers.attended),
    "blk.{}.ffn_gate.weight": lambda sizes: Scale(sizes.multipliers.gate),
    "blk.{}.ffn_down.weight": lambda sizes: Scale(sizes.multipliers.down),
    "blk.{}.ssm_in.weight": _scale_mixer,
    "blk.{}.ssm_out.weight": lambda sizes: Scale(sizes.multipliers.mixed),
}


def _multiplied(*tensors: Known) -> tuple[Known, ...]:
    return tuple(known.transformed(_SCALES[known.target]) if known.target in _SCALES else known for known in tensors)


FALCON_H1 = Family(
    classes=("FalconH1ForCausalLM",),
    architecture="falcon-h1",
    tensors=_multiplied(
        decoder.EMBEDDING,
        *decoder.final_norm("final_layernorm"),
        decoder.OUTPUT,
        *norm("input_layernorm", "attn_norm"),
        *linear("self_attn.q_proj", "attn_q", "queries", "width", bias=False),
        *linear("self_attn.k_proj", "attn_k", "keys", "width", bias=False),
        *linear("self_attn.v_proj", "attn_v", "keys", "width", bias=False),
        *linear("self_attn.o_proj", "attn_output", "width", "queries", bias=False),
        # Without the usual ending, as llama.cpp looks for it.
        layer("pre_ff_layernorm.weight", "ffn_norm", "width"),
        *linear("feed_forward.gate_proj", "ffn_gate", "feed_forward", "width", bias=False),
        *linear("feed_forward.up_proj", "ffn_up", "feed_forward", "width", bias=False),
        *linear("feed_forward.down_proj", "ffn_down", "width", "feed_forward", bias=False),
        *mixer("mamba", normed=False),
    ),
    sizes=_FalconSizes,
    read_sizes=_read_falcon_sizes,
    describe=lambda config, sizes: {**decoder.describe(config, sizes), **describe_mixer(sizes)},
)
FAMILIES = (MAMBA2, GRANITE_HYBRID, FALCON_H1)
