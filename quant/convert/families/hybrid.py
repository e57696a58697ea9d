"""Models with mixers of Mamba's second kind: Mamba 2 itself, and with attention beside them Granite 4 and Falcon H1.

Sources: `modeling_mamba2.py`, `modeling_granitemoehybrid.py` and `modeling_falcon_h1.py` of transformers, `mamba2.cpp`,
`granite-hybrid.cpp` and `falcon-h1.cpp` of llama.cpp. Falcon H1 multiplies in many places by fixed numbers, which
llama.cpp wants in the weights.
"""

from __future__ import annotations

from typing import Any

from quant.convert.base import Family, Known, Sizes
from quant.convert.config import Config
from quant.convert.families import decoder, llama, moe
from quant.convert.families.decoder import layer, linear, norm
from quant.convert.families.recurrent import describe_states, masks, some
from quant.convert.transforms import NegativeExponential, Scale, ScaleBlocks
from quant.errors import MalformedFile, UnsupportedModel
from quant.gguf.header import MAX_BLOCKS
from quant.plan import Transform


def mixer(source: str, normed: bool = True) -> tuple[Known, ...]:
    """The tensors of a mixer; those that llama.cpp wants in another shape have their values in the same order."""
    return (
        *linear(f"{source}.in_proj", "ssm_in", "projected", "width", bias=False),
        layer(f"{source}.conv1d.weight", "ssm_conv1d.weight", "convolved", "one", "kernel")._replace(
            result=("convolved", "kernel")
        ),
        layer(f"{source}.conv1d.bias", "ssm_conv1d.bias", "convolved"),
        layer(f"{source}.dt_bias", "ssm_dt.bias", "states"),
        layer(f"{source}.A_log", "ssm_a", "states", transform="rates")._replace(result=("states", "one")),
        layer(f"{source}.D", "ssm_d", "states")._replace(result=("states", "one")),
        layer(f"{source}.norm.weight", "ssm_norm.weight", "inner", required=normed)._replace(
            result=("groups", "group")
        ),
        *linear(f"{source}.out_proj", "ssm_out", "width", "inner", bias=False),
    )


def mixer_sizes(config: Config, inner: int, states: int, prefix: str = "mamba_") -> dict[str, int]:
    """The sizes of a mixer of `states` states, which are heads of an inner width."""
    names = ("n_groups", "d_state", "d_conv") if prefix else ("n_groups", "state_size", "conv_kernel")
    groups, state, kernel = (config.count(prefix + name) for name in names)
    if inner % states or inner % groups:
        raise MalformedFile(f"an inner width of {inner} cannot be shared by {states} states in {groups} groups")
    # transformers writes infinity as an object since its version 5.
    limits = (None, [0.0, float("inf")], [0.0, {"__float__": "Infinity"}])
    if config.get("time_step_limit") not in limits:
        raise UnsupportedModel("it limits its time steps, which llama.cpp does not do")
    convolved = inner + 2 * groups * state
    return {
        **{"inner": inner, "states": states, "groups": groups, "group": inner // groups, "state": state, "one": 1},
        **{"kernel": kernel, "convolved": convolved, "projected": inner + convolved + states},
    }


def describe_mixer(sizes: Sizes) -> dict[str, Any]:
    """The entries of a model with such mixers."""
    return {
        "ssm.conv_kernel": sizes["kernel"],
        "ssm.inner_size": sizes["inner"],
        "ssm.state_size": sizes["state"],
        "ssm.time_step_rank": sizes["states"],
        "ssm.group_count": sizes["groups"],
    }


def _read_mamba2_sizes(config: Config) -> dict[str, int]:
    width, states = config.count("hidden_size"), config.count("num_heads")
    return {
        **mixer_sizes(config, width * config.count("expand", 2), states, prefix=""),
        **{"vocabulary": config.count("vocab_size"), "width": width, "layers": config.count("num_hidden_layers")},
    }


def _describe_mamba2(config: Config, sizes: Sizes) -> dict[str, Any]:
    return {**describe_states(config, sizes), **describe_mixer(sizes)}


MAMBA2 = Family(
    classes=("Mamba2ForCausalLM",),
    architecture="mamba2",
    tensors=(
        Known("embeddings.weight", "token_embd.weight", ("vocabulary", "width")),
        decoder.OUTPUT,
        *decoder.final_norm("norm_f"),
        *norm("norm", "attn_norm"),
        *mixer("mixer"),
    ),
    read_sizes=_read_mamba2_sizes,
    describe=_describe_mamba2,
    transforms=lambda sizes: {"rates": NegativeExponential()},
    prefix=r"(backbone\.)?",
)


def _attending(config: Config, layers: int) -> list[bool]:
    """Which of Granite's layers attend; the others are mixers."""
    known = {"attention": True, "full_attention": True, "mamba": False, "linear_attention": False}
    kinds = config.get("layer_types") or config.get("layers_block_type")
    fine = isinstance(kinds, list) and len(kinds) == layers <= MAX_BLOCKS
    if not fine or any(not isinstance(kind, str) or kind not in known for kind in kinds):
        raise config.wrong("layer_types", f"a list of what {layers} layers are")
    return [known[kind] for kind in kinds]


def _read_granite_sizes(config: Config) -> dict[str, int]:
    """Without experts, the part that is shared by all is the only one."""
    experts = config.count("num_local_experts") if config.get("num_local_experts") else 0
    shared = config.count("shared_intermediate_size")
    wide = config.count("intermediate_size") if experts else shared
    sizes = decoder.read_sizes(config.changed({"intermediate_size": wide}))
    mixers = mixer_sizes(config, sizes["width"] * config.count("mamba_expand", 2), config.count("mamba_n_heads"))
    if mixers["inner"] != 2 * sizes["width"]:
        raise UnsupportedModel("its inner size is not twice its width, as llama.cpp needs it")
    kinds = masks(_attending(config, sizes["layers"]))
    turns = config.get("position_embedding_type") == "rope"
    return {
        **sizes,
        **mixers,
        **{"mixing": kinds["others"], "turning": turns * kinds["attending"], "still": (not turns) * kinds["attending"]},
        **{"experts": experts, "shared_expert": shared, "two_shared": 2 * shared},
        **{"mixtures": sizes["layers"] if experts else 0, "dense": 0 if experts else sizes["layers"]},
    }


def _describe_granite(config: Config, sizes: Sizes) -> dict[str, Any]:
    shared = [sizes["shared"] if attends else 0 for attends in _attending(config, sizes["layers"])]
    experts = {}
    if sizes["experts"]:
        experts = decoder.describe_experts(sizes["experts"], config.count("num_experts_per_tok"))
        experts["expert_shared_feed_forward_length"] = sizes["shared_expert"]
    return {
        **llama.describe_granite(config, sizes),
        **describe_mixer(sizes),
        "attention.head_count_kv": shared,
        # What llama.cpp takes for whether queries and keys are rotated.
        "rope.scaling.finetuned": sizes["turning"] > 0,
        **experts,
    }


_ONE_EXPERT = (
    layer("shared_mlp.input_linear.weight", "ffn_gate.weight blk.{}.ffn_up.weight", "two_feed_forward", "width"),
    layer("shared_mlp.output_linear.weight", "ffn_down.weight", "width", "feed_forward"),
)
_BASE = (decoder.EMBEDDING, *decoder.final_norm(), decoder.OUTPUT, *decoder.NORMS)


def _read_dense_sizes(config: Config) -> dict[str, int]:
    wide = config.count("shared_intermediate_size")
    return decoder.read_sizes(config.changed({"intermediate_size": wide}))


def _describe_dense(config: Config, sizes: Sizes) -> dict[str, Any]:
    if config.get("position_embedding_type") != "rope":
        raise UnsupportedModel("all its layers attend, and none has positions")
    return llama.describe_granite(config, sizes)


# What llama.cpp takes for Granite 3.
_GRANITE_DENSE = Family(
    classes=(),
    architecture="granite",
    tensors=(*_BASE, *decoder.paired(decoder.ATTENTION), *_ONE_EXPERT),
    read_sizes=_read_dense_sizes,
    describe=_describe_dense,
    transforms=llama.transforms,
)


def _without_mixers(config: Config) -> Family | None:
    """Some of Granite 4's small models have nothing but attention, which llama.cpp's hybrids cannot be."""
    if not all(_attending(config, config.count("num_hidden_layers"))):
        return None
    return moe.GRANITE_MOE if config.get("num_local_experts") else _GRANITE_DENSE


GRANITE_HYBRID = Family(
    classes=("GraniteMoeHybridForCausalLM",),
    architecture="granitehybrid",
    tensors=(
        *_BASE,
        *some("turning", *decoder.paired(decoder.ATTENTION)),
        *some("still", *decoder.ATTENTION),
        *some("mixing", *mixer("mamba")),
        *decoder.only(tuple(each for each in moe.GRANITE_MOE.tensors if "_moe." in each.source), "", "mixtures"),
        *decoder.only(tuple(each for each in moe.GRANITE_MOE.tensors if "_mlp." in each.source), "", "mixtures"),
        *decoder.only(_ONE_EXPERT, "", "dense"),
    ),
    read_sizes=_read_granite_sizes,
    describe=_describe_granite,
    transforms=lambda sizes: {**llama.transforms(sizes), "rates": NegativeExponential()},
    instead=_without_mixers,
)


def _factors(config: Config, key: str, count: int) -> tuple[float, ...]:
    values = config.get(key)
    if values is None:
        return (1.0,) * count
    if not isinstance(values, list) or len(values) != count or any(type(each) not in (int, float) for each in values):
        raise config.wrong(key, f"{count} numbers")
    return tuple(float(each) for each in values)


def _read_falcon_sizes(config: Config) -> dict[str, int]:
    width = config.count("hidden_size")
    inner = config.count("mamba_d_ssm", width * config.count("mamba_expand", 2))
    if config.flag("mamba_rms_norm") and config.flag("mamba_norm_before_gate", True):
        raise UnsupportedModel("its mixers norm before they gate, and llama.cpp does so after")
    return {**decoder.read_sizes(config), **mixer_sizes(config, inner, config.count("mamba_n_heads"))}


def _scaled(config: Config, sizes: Sizes) -> dict[str, Transform]:
    """What Falcon H1 multiplies by, where the weights are."""
    into, out = config.number("attention_in_multiplier", 1.0), config.number("attention_out_multiplier", 1.0)
    gate, down = _factors(config, "mlp_multipliers", 2)
    mixer = _factors(config, "ssm_multipliers", 5)
    parts = (*[sizes["inner"]] * 2, *[sizes["groups"] * sizes["state"]] * 2, sizes["states"])
    whole = config.number("ssm_in_multiplier", 1.0)
    embedding, head = config.number("embedding_multiplier", 1.0), config.number("lm_head_multiplier", 1.0)
    if config.flag("tie_word_embeddings") and embedding != head:
        raise UnsupportedModel("it multiplies its one embedding by one number going in and by another coming out")
    return {
        "embedding": Scale(embedding),
        "head": Scale(head),
        "attention": Scale(into),
        "keys": Scale(into * config.number("key_multiplier", 1.0)),
        "attended": Scale(out),
        "gate": Scale(gate),
        "down": Scale(down),
        "mixer": ScaleBlocks(parts, tuple(whole * each for each in mixer)),
        "mixed": Scale(config.number("ssm_out_multiplier", 1.0)),
    }


# By what each tensor is multiplied, by its name in GGUF.
_FACTORS = {
    **{"token_embd": "embedding", "output": "head", "attn_q": "attention", "attn_k": "keys", "attn_v": "attention"},
    **{"attn_output": "attended", "ffn_gate": "gate", "ffn_down": "down", "ssm_in": "mixer", "ssm_out": "mixed"},
}


def _multiplied(tensors: tuple[Known, ...]) -> tuple[Known, ...]:
    names = (known.target.removeprefix("blk.{}.").removesuffix(".weight") for known in tensors)
    return tuple(
        known._replace(transform=_FACTORS.get(name, known.transform))
        for name, known in zip(names, tensors, strict=True)
    )


FALCON_H1 = Family(
    classes=("FalconH1ForCausalLM",),
    architecture="falcon-h1",
    tensors=_multiplied(
        (
            *(decoder.EMBEDDING, *decoder.final_norm("final_layernorm"), decoder.OUTPUT),
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
        )
    ),
    read_sizes=_read_falcon_sizes,
    describe=lambda config, sizes: {**decoder.describe(config, sizes), **describe_mixer(sizes)},
    transforms=lambda sizes: {"rates": NegativeExponential()},
    scaled=_scaled,
)
FAMILIES = (MAMBA2, GRANITE_HYBRID, FALCON_H1)
