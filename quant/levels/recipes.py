"""Named levels: which type each tensor gets.

The rules are llama.cpp's (`llama_tensor_get_type_impl` in llama-quant.cpp), so that `Q4_K_M` means here what it means
everywhere. They are data: a level has a base type, and for a role (value projection, down projection, …) a list of
rules, of which the first whose condition holds decides. Where llama.cpp distinguishes whether importance is known, the
rule is the one for models without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple

from quant.errors import UnknownLevel
from quant.plan import MXFP4_MOE, ModelPlan, TensorPlan
from quant.types import QuantType

T = QuantType


@dataclass(frozen=True, slots=True)
class Position:
    """The numbers that conditions read: the tensor is number `index` of `count` tensors of its role.

    `sharing` is the number of query heads that share a key head (1 without sharing), `experts` the number of experts
    in a layer (0 in a dense model).
    """

    index: int
    count: int
    sharing: int
    experts: int


def _more_bits(position: Position) -> bool:
    """`use_more_bits` of llama.cpp: the first and the last eighth of the layers, and every third layer between them."""
    eighth = position.count // 8
    return position.index < eighth or position.index >= 7 * position.count // 8 or (position.index - eighth) % 3 == 2


_CONDITIONS: dict[str, Callable[[Position], bool]] = {
    "always": lambda position: True,
    "more bits": _more_bits,
    "first two": lambda position: position.index < 2,
    "first four": lambda position: position.index < 4,
    "first eighth": lambda position: position.index < position.count // 8,
    "first sixteenth": lambda position: position.index < position.count // 16,
    "middle": lambda position: position.count // 8 <= position.index < 7 * position.count // 8,
    "shared by four": lambda position: position.sharing >= 4,
    "four experts": lambda position: position.experts >= 4,
    "eight experts": lambda position: position.experts == 8,
    "other than eight experts": lambda position: position.experts != 8,
    "more bits, eight experts": lambda position: position.experts == 8 and _more_bits(position),
}


class Rule(NamedTuple):
    """`type` is for tensors for which the condition `when` holds, a key of `_CONDITIONS`."""

    type: QuantType
    when: str = "always"


Rules = tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Level:
    """A named level.

    file_type: its number in `general.file_type`.
    base: the type of a tensor for which no rule holds.
    bits: bits per weight in a Llama of 8 B, for orientation.
    value, key, query, output: rules for the projections of attention.
    down, wide: rules for the feed-forward projections; `wide` is gate and up.
    head: the type of the output matrix, also when the embedding is the output matrix.
    embedding: the type of an embedding that is not the output matrix as well, None for `base`.
    flat: the type of all matrices that are no stack of experts, None where rules decide.
    low: whether llama.cpp leaves out its exceptions for large models (`_with_exceptions`) at this level.
    """

    name: str
    file_type: int
    base: QuantType
    bits: float
    value: Rules = ()
    down: Rules = ()
    output: Rules = ()
    key: Rules = ()
    query: Rules = ()
    wide: Rules = ()
    head: QuantType = T.Q6_K
    embedding: QuantType | None = None
    flat: QuantType | None = None
    low: bool = False


_MORE_Q6 = (Rule(T.Q6_K, "more bits"),)
_ALL_Q5 = (Rule(T.Q5_K),)
_EXPERTS_Q5 = Rule(T.Q5_K, "eight experts")
_FOUR_Q4 = Rule(T.Q4_K, "shared by four")
_FOUR_Q5 = (Rule(T.Q5_K, "shared by four"),)
_EIGHTH_Q5 = (Rule(T.Q5_K, "first eighth"),)


def _low(name: str, file_type: int, base: QuantType, bits: float, better: QuantType, output: Rules = ()) -> Level:
    """A level of at most three bits. `better` is for value projections and the first eighth of the down projections."""
    return Level(
        name,
        file_type,
        base,
        bits,
        value=(_FOUR_Q4, Rule(T.Q4_K, "four experts"), Rule(better)),
        down=(Rule(better, "first eighth"),),
        output=(_EXPERTS_Q5, *output),
        key=(Rule(T.Q4_K, "eight experts"),),
        head=T.Q5_K,
        embedding=T.IQ3_S if better is T.IQ3_S else T.Q2_K,
        low=True,
    )


# From the largest to the smallest, which is from the best to the worst but for the old formats (Q4_0, Q5_1, …).
_LEVELS = (
    Level("F32", 0, T.F32, 32.0),
    Level("BF16", 32, T.BF16, 16.0),
    Level("F16", 1, T.F16, 16.0),
    Level("Q8_0", 7, T.Q8_0, 8.5, head=T.Q8_0),
    Level("Q6_K", 18, T.Q6_K, 6.56),
    Level("Q5_1", 9, T.Q5_1, 6.04),
    Level("Q5_K_M", 17, T.Q5_K, 5.7, _MORE_Q6, _MORE_Q6),
    Level("Q5_K_S", 16, T.Q5_K, 5.57),
    Level("Q5_0", 8, T.Q5_0, 5.57),
    Level("Q4_1", 3, T.Q4_1, 5.1),
    Level("Q4_K_M", 15, T.Q4_K, 4.89, _MORE_Q6, _MORE_Q6, (_EXPERTS_Q5,)),
    Level("IQ4_NL", 25, T.IQ4_NL, 4.68, _FOUR_Q5, _EIGHTH_Q5, (_EXPERTS_Q5,)),
    Level("Q4_K_S", 14, T.Q4_K, 4.67, (Rule(T.Q5_K, "first four"),), _EIGHTH_Q5, (_EXPERTS_Q5,)),
    Level("Q4_0", 2, T.Q4_0, 4.64),
    Level("IQ4_XS", 30, T.IQ4_XS, 4.46, _FOUR_Q5, _EIGHTH_Q5, (_EXPERTS_Q5,)),
    Level("Q3_K_L", 13, T.Q3_K, 4.3, _ALL_Q5, _ALL_Q5, (Rule(T.Q5_K, "other than eight experts"),)),
    Level("MXFP4_MOE", MXFP4_MOE, T.MXFP4, 4.25, head=T.Q8_0, flat=T.Q8_0),
    Level(
        "Q3_K_M",
        12,
        T.Q3_K,
        4.0,
        value=(Rule(T.Q5_K, "first two"), Rule(T.Q4_K)),
        down=(Rule(T.Q5_K, "first sixteenth"), Rule(T.Q4_K)),
        output=(_EXPERTS_Q5, Rule(T.Q4_K)),
    ),
    Level(
        "IQ3_M",
        27,
        T.IQ3_S,
        3.76,
        value=(Rule(T.Q4_K),),
        down=(Rule(T.Q4_K, "first eighth"), Rule(T.Q4_K, "more bits, eight experts")),
        output=(_EXPERTS_Q5, Rule(T.Q4_K)),
    ),
    Level("IQ3_S", 26, T.IQ3_S, 3.66, (_FOUR_Q4,), output=(_EXPERTS_Q5,)),
    Level("Q3_K_S", 11, T.Q3_K, 3.64, output=(_EXPERTS_Q5,)),
    Level(
        "IQ3_XS",
        22,
        T.IQ3_S,
        3.5,
        value=(_FOUR_Q4,),
        output=(_EXPERTS_Q5,),
        key=(Rule(T.IQ3_XXS),),
        query=(Rule(T.IQ3_XXS),),
        wide=(Rule(T.IQ3_XXS, "middle"),),
    ),
    Level(
        "IQ3_XXS",
        23,
        T.IQ3_XXS,
        3.37,
        value=(_FOUR_Q4, Rule(T.IQ3_S)),
        down=(Rule(T.Q4_K, "first eighth"), Rule(T.Q3_K)),
        output=(_EXPERTS_Q5, Rule(T.IQ3_S)),
        key=(Rule(T.IQ2_S),),
        query=(Rule(T.IQ2_S),),
        head=T.Q5_K,
        embedding=T.IQ3_S,
    ),
    Level(
        "Q2_K",
        10,
        T.Q2_K,
        3.16,
        value=(_FOUR_Q4, Rule(T.Q3_K)),
        down=(Rule(T.Q3_K),),
        output=(_EXPERTS_Q5, Rule(T.Q3_K)),
    ),
    Level("Q2_K_S", 21, T.Q2_K, 2.97, (_FOUR_Q4,), (Rule(T.Q4_K, "first eighth"),)),
    _low("IQ2_M", 29, T.IQ2_S, 2.93, T.IQ3_S, (Rule(T.IQ3_S),)),
    _low("IQ2_S", 28, T.IQ2_XS, 2.74, T.IQ3_S, (Rule(T.IQ3_S),)),
    Level("Q2_0", 41, T.Q2_0, 2.68, embedding=T.Q4_K),
    _low("IQ2_XS", 20, T.IQ2_XS, 2.59, T.Q2_K),
    Level("TQ2_0", 37, T.TQ2_0, 2.52, embedding=T.Q4_K),
    _low("IQ2_XXS", 19, T.IQ2_XXS, 2.38, T.Q2_K),
    Level("TQ1_0", 36, T.TQ1_0, 2.19, embedding=T.Q4_K),
    _low("IQ1_M", 31, T.IQ1_M, 2.15, T.Q2_K, (Rule(T.IQ2_XXS),)),
    _low("IQ1_S", 24, T.IQ1_S, 2.0, T.Q2_K, (Rule(T.IQ2_XXS),)),
    Level("Q1_0", 40, T.Q1_0, 1.48),
)
LEVELS: dict[str, Level] = {level.name: level for level in _LEVELS}
# The levels that `lm` chooses among by itself (`runtime/machine/choosing.py`): no other one is both smaller and better.
LADDER = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
# The type to use where a row is not made of whole blocks of the wanted type; F16 where the fallback fits no better.
_FALLBACK = {
    T.Q2_0: T.Q4_0,
    T.Q2_K: T.Q4_0,
    T.Q3_K: T.Q4_0,
    T.TQ1_0: T.Q4_0,
    T.TQ2_0: T.Q4_0,
    T.Q4_K: T.Q5_0,
    T.Q5_K: T.Q5_1,
    T.Q6_K: T.Q8_0,
    T.IQ1_S: T.IQ4_NL,
    T.IQ1_M: T.IQ4_NL,
    T.IQ2_XXS: T.IQ4_NL,
    T.IQ2_XS: T.IQ4_NL,
    T.IQ2_S: T.IQ4_NL,
    T.IQ3_XXS: T.IQ4_NL,
    T.IQ3_S: T.IQ4_NL,
    T.IQ4_XS: T.IQ4_NL,
}
# Endings of the names of matrices that stay F32, as in `tensor_allows_quantization` of llama-quant.cpp.
_NEVER_QUANTIZED = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "position_embd.weight",
    "token_types.weight",
    "altup_predict_coef.weight",
    "altup_correct_coef.weight",
    "altup_correct_scale.weight",
    "altup_router.weight",
    "laurel_l.weight",
    "laurel_r.weight",
    *("time_mix_first.weight", "time_mix_lerp_fused.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight"),
    *(f"time_mix_{letter}{number}.weight" for letter in "wvag" for number in "12"),
    "ssm_conv1d.weight",
    "ssm_conv1d_q.weight",
    "ssm_conv1d_k.weight",
    "ssm_conv1d_v.weight",
    "shortconv.conv.weight",
)
# Matrices that make several streams of one and one of several; llama.cpp leaves them as they are.
_STREAMS = ("altup_proj", "altup_unembd_proj")
# Roles of the value projection: alone, or fused with queries and keys. llama.cpp numbers them together.
_VALUES = ("attn_v", "attn_qkv", "attn_kv_b")
# Role → field of `Level` that has its rules.
_RULES = {
    "attn_v": "value",
    "attn_qkv": "value",
    "attn_kv_b": "value",
    "attn_k": "key",
    "attn_q": "query",
    "attn_output": "output",
    "ffn_down": "down",
    "ffn_gate": "wide",
    "ffn_up": "wide",
}


def level_of(name: str) -> Level:
    """The level with this name, in any case; UnknownLevel, which lists all levels, for another name."""
    try:
        return LEVELS[name.upper()]
    except KeyError:
        begun = [level for level in LEVELS if level.startswith(f"{name.upper()}_")]
        close = [level for level in begun if level in LADDER] or begun or get_close_matches(name.upper(), LEVELS, 3)
        meant = f"did you mean `{'` or `'.join(close)}`? " if close else ""
        raise UnknownLevel(f"there is no level `{name}`", hint=f"{meant}the levels are {', '.join(LEVELS)}") from None


def assign(plan: ModelPlan, level: str) -> dict[str, QuantType]:
    """The type of every tensor of `plan` at `level`, as llama.cpp's quantizer assigns them without importance data."""
    chosen = level_of(level)
    whole = chosen.base.block == 1
    tied = plan.tied
    seen: dict[str, int] = {}
    types = {}
    for tensor in sorted(plan.tensors, key=_order):
        if not quantizable(tensor):
            types[tensor.name] = T.F32
        elif whole:
            types[tensor.name] = chosen.base
        else:
            types[tensor.name] = type_for_rows(_type_by_rules(tensor, chosen, plan, tied, seen), tensor.columns)
        types[tensor.name] = or_published(types[tensor.name], tensor)
    return {tensor.name: types[tensor.name] for tensor in plan.tensors}


def or_published(type: QuantType, tensor: TensorPlan) -> QuantType:
    """`type`, or the type in which the makers published the weights, when that is no larger: it loses nothing."""
    own = tensor.published_type
    return own if own and own.bits_per_weight <= type.bits_per_weight else type


def weights_bytes(plan: ModelPlan, level: str) -> int:
    """Bytes of the tensors of `plan` in the file at the named `level`, without padding."""
    return sum(tensor.nbytes for tensor in plan.at(assign(plan, level)))


def describe(level: str) -> dict[str, Any]:
    """The GGUF entries that name the level."""
    return {"general.file_type": level_of(level).file_type, "general.quantization_version": 2}


def quantizable(tensor: TensorPlan) -> bool:
    """Whether levels decide about this tensor: a matrix that is no norm and no expert router. Others stay F32."""
    return len(tensor.shape) >= 2 and tensor.name.endswith("weight") and not tensor.name.endswith(_NEVER_QUANTIZED)


def _order(tensor: TensorPlan) -> tuple[int, str]:
    """The order in which llama.cpp counts the tensors of a role: by layer, then by name; conditions depend on it."""
    return (-1 if tensor.layer is None else tensor.layer, tensor.name)


def _type_by_rules(tensor: TensorPlan, level: Level, plan: ModelPlan, tied: bool, seen: dict[str, int]) -> QuantType:
    """The type that `level` wants for a tensor, whatever the length of its rows; `seen` counts the tensors by role."""
    role = tensor.role
    if role == "output" or (role == "token_embd" and tied):
        return T.Q8_0 if tensor.columns % level.base.block else level.head
    if level.flat:
        return level.base if len(tensor.shape) > 2 else level.flat
    if role == "token_embd":
        return level.embedding or level.base
    if role in _STREAMS:
        return T.Q8_0
    if role not in _RULES:
        return level.base
    position = _position(plan, role, seen, tensor.layer or 0)
    rules: Rules = getattr(level, _RULES[role])
    type = next((rule.type for rule in rules if _CONDITIONS[rule.when](position)), level.base)
    return type if level.low else _with_exceptions(role, type, position, plan)


def _position(plan: ModelPlan, role: str, seen: dict[str, int], layer: int) -> Position:
    """The position of the next tensor of a role, which is counted in `seen`.

    In a mixture of experts the index of a feed-forward tensor is the number of its layer.
    """

    def fact(key: str, default: int) -> int:
        value = plan.metadata.get(f"{plan.architecture}.{key}", default)
        return int(value[0] if isinstance(value, list | tuple) and value else value) or default

    experts = fact("expert_count", 0)
    sharing = fact("attention.head_count", 1) // fact("attention.head_count_kv", 1)
    role = "value" if role in _VALUES else role
    index = seen.get(role, 0)
    seen[role] = index + 1
    if role == "value":
        if "values" not in seen:
            names = tuple(f"{name}.weight" for name in _VALUES)
            seen["values"] = sum(tensor.name.endswith(names) for tensor in plan.tensors)
        return Position(index, seen["values"], sharing, experts)
    return Position(layer if experts > 1 else index, fact("block_count", 1), sharing, experts)


def _with_exceptions(role: str, type: QuantType, position: Position, plan: ModelPlan) -> QuantType:
    """`type`, or a larger one by llama.cpp's two exceptions.

    They are for keys and values in a model of eight experts, and for values of a Llama of 70 B (80 layers).
    """
    if role in (*_VALUES, "attn_k") and position.experts == 8:
        return T.Q8_0
    large = plan.architecture == "llama" and plan.metadata.get("llama.block_count") == 80 and position.sharing > 1
    if role in _VALUES and large and type in (T.Q3_K, T.Q4_K):
        return T.Q5_K
    return type


def type_for_rows(type: QuantType, columns: int) -> QuantType:
    """`type`, or its fallback where a row of `columns` elements is not made of whole blocks of it."""
    if columns % type.block:
        type = _FALLBACK.get(type, T.F16)
    return T.F16 if columns % type.block else type
