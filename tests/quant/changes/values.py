"""What is changed in a config: every key that counts, one at a time, to values of published models; and pairs."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from quant.convert.keys import COUNTING, WITHOUT_EFFECT

ABSENT = "<absent>"
"""In a change: the key is left out."""
# The config's own size of the vocabulary is the tokenizer's. Parts beside the language model count for nothing.
_UNTOUCHED = ("vocab_size", "text_config", "vision_config", "audio_config", "architectures", "model_type")
_ROTARY = ("rope_parameters", "rope_scaling", "rope_theta")
# Scalings of rotary embeddings as published; `original` is shorter than the text of a trial, so that all of them count.
_ORIGINAL = {"original_max_position_embeddings": 64}
_YARN = {"rope_type": "yarn", "factor": 4.0, **_ORIGINAL}
_SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **_ORIGINAL},
    "yarn": _YARN,
    "yarn, betas": {**_YARN, "beta_fast": 8.0, "beta_slow": 0.5},
    "yarn, attention": {**_YARN, "attention_factor": 1.3},
    "yarn, mscale": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
    "yarn, mscale apart": {**_YARN, "mscale": 0.7},
    "yarn, not truncated": {**_YARN, "truncate": False},
}
# Values that published models have, by the key.
_VALUES: dict[str, list[Any]] = {
    "sliding_window": [None, 32, 4096, 0, -1],
    "attn_logit_softcapping": [None, 20.0],
    "final_logit_softcapping": [None, 15.0],
    "hidden_act": ["silu", "swish", "gelu", "gelu_pytorch_tanh", "relu", "relu2"],
    "hidden_activation": ["silu", "gelu", "gelu_pytorch_tanh", None],
    "activation_function": ["gelu_new", "gelu", "relu", "gelu_pytorch_tanh"],
    "mlp_hidden_act": ["relu2", "silu"],
    "mamba_hidden_act": ["silu", "gelu"],
    "attention_chunk_size": [None, 32, 8192],
    "partial_rotary_factor": [0.25, 0.5, 1.0],
    "rotary_pct": [0.25, 0.5, 1.0],
    "rotary_dim": [16, 32],
    "query_pre_attn_scalar": [16, 32, 256],
    "logit_scale": [0.0625, 1.0],
    "clip_qkv": [None, 2.0],
    "is_causal": [True, False, None],
    "max_position_embeddings": [256, 4096, 131072],
    "pad_token_id": [None, 0, 5, -1],
    "bos_token_id": [None, 3, -1],
    "eos_token_id": [3, [2, 3]],
    "use_bidirectional_attention": [True, False, None, "vision", "all"],
    "scoring_func": ["sigmoid", "softmax"],
    "topk_method": ["greedy", "group_limited_greedy", "noaux_tc"],
    "position_embedding_type": ["absolute", "relative_key", "rope", "nope", None],
    "sliding_window_pattern": [1, 2, 3, 6, "LLLG"],
    "rope_local_base_freq": [100.0, 10000.0],
    "num_experts_per_tok": [1, 2, 4],
    "dtype": ["bfloat16"],
    "torch_dtype": ["float16"],
    "time_step_limit": [[0.001, 0.1], [0.0, 8.0]],
    "mamba_dt_limit": [[0.001, 0.1]],
    "classifier_pooling": ["mean", "cls"],
    "classifier_activation": ["silu", "gelu"],
    "no_rope_layers": [[1, 1, 1, 0, 1], [0, 1, 1, 0, 1]],
    "no_rope_layer_interval": [2, 3],
    "mlp_only_layers": [[0], [1], [0, 1]],
    "tie_embedding": [True, False],
    "expand": [1, 2, 4],
    "hidden_size": [64, 256],
}
_KINDS = ("layer_types", "layers_block_type", "mlp_layer_types", "mtp_layers_block_type")


class Change(NamedTuple):
    """Values for some keys, by what the change is called; `keys` are those that it is about.

    `old` changes are made in the config as transformers 4 has it.
    """

    name: str
    keys: tuple[str, ...]
    values: Mapping[str, Any]
    old: bool = False


def values(key: str, value: Any, default: Any) -> list[Any]:
    """Other values to try for a key that has `value`; `ABSENT` leaves it out."""
    found: list[Any] = list(_VALUES.get(key, []))
    if key in _KINDS and isinstance(value, list) and value:
        found += [value[::-1], [value[0]] * len(value), value[:-1], [*value[1:], value[0]]]
        found += [["full_attention"] * len(value), ["sliding_attention"] * len(value)]
    elif not found:
        found = _guessed(value, default)
    return [ABSENT, *(each for each in found if each != value or type(each) is not type(value))]


def _guessed(value: Any, default: Any) -> list[Any]:
    if isinstance(value, bool) or isinstance(default, bool):
        return [True, False]
    if isinstance(value, float) or isinstance(default, float):
        given = float(value if isinstance(value, int | float) else default)
        return [given * 10, 0.0, 1.0]
    if isinstance(value, int):
        return [value * 2, max(value // 2, 1), 0]
    if isinstance(default, int):
        return [default, 1, 2]
    if isinstance(value, list) and value and all(isinstance(each, int | float) for each in value):
        return [value[::-1], [each * 2 for each in value], value[:-1]]
    return [2] if value is None else []


def singles(config: Mapping[str, Any], entry: Mapping[str, Any]) -> Iterator[Change]:
    """Each change of one key of a language model's config, by the entry of its class."""
    keys = {**dict.fromkeys([*config, *entry["aliases"]]), **entry["others"], **entry["defaults"]}
    for key, default in sorted(keys.items()):
        if key in (*_ROTARY, *_UNTOUCHED) or key.startswith("_"):
            continue
        # One value is enough for a key that never counts.
        tried = values(key, config.get(key), default)
        for value in tried[:2] if key in WITHOUT_EFFECT - COUNTING else tried:
            if value is not ABSENT or key in config:
                yield Change(f"{key} = {json.dumps(value)}", (key,), {key: value})
    if entry["rope"]:
        yield from _rotary(config)


def _rotary(config: Mapping[str, Any]) -> Iterator[Change]:
    given = config.get("rope_parameters") or {}
    first = next((value for value in given.values() if isinstance(value, dict)), given)
    theta = first.get("rope_theta", config.get("rope_theta", 10000.0))
    kept = {key: value for key, value in first.items() if key == "partial_rotary_factor"}
    none = dict.fromkeys(_ROTARY, ABSENT)
    for name, scaling in {"none": {"rope_type": "default"}, **_SCALINGS, "longrope": _long(config, first)}.items():
        old = None if name == "none" else {("type" if key == "rope_type" else key): v for key, v in scaling.items()}
        new = {**kept, **scaling, "rope_theta": theta}
        forms: dict[str, dict[str, Any]] = {
            f"rope_parameters: {name}": {"rope_parameters": new},
            f"rope_scaling (type): {name}": {"rope_scaling": old, "rope_theta": theta, **kept},
        }
        if name == "llama3":
            forms[f"rope_scaling (rope_type): {name}"] = {"rope_scaling": scaling, "rope_theta": theta, **kept}
        if any(isinstance(value, dict) for value in given.values()):
            apart = {key: {**value, **scaling} if value is first else value for key, value in given.items()}
            forms[f"rope_parameters of one kind of layers: {name}"] = {"rope_parameters": apart}
        for form, made in forms.items():
            yield Change(form, (form.partition(":")[0].partition(" ")[0], f"scaling: {name}"), {**none, **made})
    for value in (1000.0, 1e6):
        yield Change(f"rope_theta = {value}", ("rope_theta",), {**none, **kept, "rope_theta": value})
        bare = {"rope_type": "default", **kept, "rope_theta": value}
        yield Change(f"rope_parameters: rope_theta {value}", ("rope_parameters",), {**none, "rope_parameters": bare})
    yield Change("no rope_theta", ("rope_theta",), {**none, **kept})
    yield Change("rope_parameters = null", ("rope_parameters",), {**none, **kept, "rope_parameters": None})
    beside = {"rope_scaling": {"type": "linear", "factor": 4.0}}
    yield Change("rope_scaling beside rope_parameters", ("rope_scaling",), beside)
    local = {**none, **kept, "rope_local_base_freq": 100.0, "rope_theta": theta}
    yield Change("rope_local_base_freq = 100", ("rope_local_base_freq",), local)


def _long(config: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, Any]:
    """Factors for as many pairs as are rotated."""
    heads = config.get("num_attention_heads") or 4
    head = config.get("qk_rope_head_dim") or config.get("head_dim") or (config.get("hidden_size") or 64) // heads
    share = first.get("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0)
    pairs = range(int(head * share) // 2)
    factors = {"long_factor": [1 + n / 4 for n in pairs], "short_factor": [1 + n / 16 for n in pairs]}
    return {"rope_type": "longrope", **factors, **_ORIGINAL}


def as_transformers_4(config: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """A config in the form in which transformers 4 saved it: rotary settings apart, patterns in place of lists."""
    old = {key: value for key, value in config.items() if key not in ("rope_parameters", "dtype")}
    old |= {"torch_dtype": config.get("dtype") or "float32", "transformers_version": "4.48.0"}
    given = config.get("rope_parameters") or {}
    if "full_attention" in given:
        everywhere, local = given["full_attention"], given.get("sliding_attention", {})
        first, second = (("global_rope_theta", "local_rope_theta"), ("rope_theta", "rope_local_base_freq"))[
            "local_rope_theta" not in entry["others"]
        ]
        old |= {first: everywhere["rope_theta"]}
        old |= {second: local["rope_theta"]} if {second} & set(entry["others"]) else {}
        given = everywhere
    elif given:
        old |= {"rope_theta": given["rope_theta"]}
    if "rotary_pct" in entry["others"]:
        old |= {"rotary_pct": given.get("partial_rotary_factor", 1.0), "rotary_emb_base": old.pop("rope_theta")}
    elif "partial_rotary_factor" in given:
        old["partial_rotary_factor"] = given["partial_rotary_factor"]
    scaling = {k: v for k, v in given.items() if k not in ("rope_theta", "partial_rotary_factor")}
    kind = scaling.pop("rope_type", "default")
    if given:
        old["rope_scaling"] = None if kind == "default" and not scaling else {"type": kind, **scaling}
    every = _pattern(config.get("layer_types"))
    for name in ("sliding_window_pattern", "global_attn_every_n_layers"):
        if every and name in {**entry["defaults"], **dict.fromkeys(entry["others"])}:
            old.pop("layer_types")
            old[name] = every
    return old


def _pattern(kinds: Any) -> int:
    """Every how manieth layer has no window, 0 where that is not so."""
    if not isinstance(kinds, list) or "full_attention" not in kinds:
        return 0
    every = kinds.index("full_attention") + 1
    made = ["full_attention" if (number + 1) % every == 0 else "sliding_attention" for number in range(len(kinds))]
    return every if made == kinds else 0


def applied(config: Mapping[str, Any], change: Change) -> dict[str, Any]:
    """The config of a language model with a change made."""
    return {key: value for key, value in {**config, **change.values}.items() if value is not ABSENT}


def pairs(changes: list[Change], count: int, seed: str) -> Iterator[Change]:
    """Some pairs of changes of different keys, always the same ones for a seed."""
    draw = random.Random(seed)
    for _ in range(count if len(changes) > 1 else 0):
        first, second = draw.sample(changes, 2)
        if not first.values.keys() & second.values.keys():
            both = f"{first.name}; {second.name}"
            yield Change(both, (*first.keys, *second.keys), {**first.values, **second.values})


def sampled(changes: list[Change], seen: frozenset[str]) -> list[Change]:
    """Of the changes of a row: none, the older form, a scaling, and one of each key that is not among the `seen`."""
    draw = random.Random(changes[0].name + changes[-1].name)
    scalings = [each for each in changes if any(key.startswith("scaling: ") for key in each.keys)]
    by_key: dict[str, list[Change]] = {}
    for change in changes:
        if len(change.keys) == 1 and not change.old:
            by_key.setdefault(change.keys[0], []).append(change)
    new = [draw.choice(found) for key, found in by_key.items() if key not in seen]
    whole = [each for each in changes if not each.keys or each.keys == ("transformers_version",)]
    return [*whole, *draw.sample(scalings, min(len(scalings), 1)), *new]


def planned(config: Mapping[str, Any], entry: Mapping[str, Any], name: str, count: int = 6) -> list[Change]:
    """All trials of the row `name`: singles, pairs, and in the form of transformers 4 one change of each key."""
    alone = list(singles(config, entry))
    draw = random.Random(name)
    by_key: dict[str, list[Change]] = {}
    for change in alone:
        if not set(_ROTARY) & change.values.keys():
            by_key.setdefault(change.keys[0], []).append(change)
    old = [Change("as transformers 4 saved it", ("transformers_version",), {}, old=True)]
    some = draw.sample(sorted(by_key), min(len(by_key), 8))
    old += [draw.choice(by_key[key])._replace(old=True) for key in some]
    return [Change("nothing", (), {}), *alone, *old, *pairs(alone, count, name)]
