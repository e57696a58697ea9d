"""Types per tensor against llama.cpp's own choice, asked through the symbols that its tests use."""

from __future__ import annotations

import ctypes
import re

import pytest

from quant.errors import UnknownLevel
from quant.levels.recipes import LADDER, LEVELS, assign, quantizable, weights_bytes
from quant.plan import ModelPlan
from quant.types import QuantType
from tests.quant.support import bare_plan

llama_cpp = pytest.importorskip("llama_cpp")
LIB = llama_cpp.llama_cpp._lib


class Description(ctypes.Structure):
    _fields_ = [("architecture", ctypes.c_char_p)] + [
        (name, ctypes.c_uint32) for name in ("embd", "ff", "layer", "head", "head_kv", "expert", "head_k", "head_v")
    ]


class Memory(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


def bind(name: str, result: object, *arguments: object) -> ctypes._CFuncPtr:
    function = LIB[name]
    function.restype, function.argtypes = result, arguments
    return function


P = ctypes.c_void_p
make_model = bind("_Z31llama_quant_model_from_metadataPK22llama_quant_model_desc", P, P)
make_state = bind("_Z16llama_quant_initPK11llama_modelPK27llama_model_quantize_params", P, P, P)
free_state = bind("_Z16llama_quant_freeP19quantize_state_impl", None, P)
allows = bind("_Z38llama_quant_tensor_allows_quantizationPK19quantize_state_implPK11ggml_tensor", ctypes.c_bool, P, P)
compute = bind(
    "_Z25llama_quant_compute_typesP19quantize_state_impl11llama_ftypePP11ggml_tensorP9ggml_typem",
    None,
    P,
    ctypes.c_int,
    P,
    P,
    ctypes.c_size_t,
)
ggml_init = bind("ggml_init", P, Memory)
ggml_free = bind("ggml_free", None, P)
ggml_new_tensor = bind("ggml_new_tensor", P, P, ctypes.c_int, ctypes.c_int, P)
ggml_set_name = bind("ggml_set_name", P, P, ctypes.c_char_p)


def reference(plan: ModelPlan, level: str) -> dict[str, str]:
    """What llama.cpp gives every tensor of `plan`; it counts by layer, then by name."""
    facts = {key.removeprefix("llama."): value for key, value in plan.metadata.items()}
    heads, shared = facts["attention.head_count"], facts["attention.head_count_kv"]
    description = Description(
        b"llama", 256, 512, facts["block_count"], heads, shared, facts.get("expert_count", 0), 64, 64
    )
    model = make_model(ctypes.byref(description))
    params = llama_cpp.llama_model_quantize_default_params()
    state = make_state(model, ctypes.byref(params))
    context = ggml_init(Memory(16 << 20, None, True))
    ordered = sorted(plan.tensors, key=lambda t: (int((re.findall(r"blk\.(\d+)", t.name) or [-1])[0]), t.name))
    handles = {}
    for tensor in ordered:
        shape = (ctypes.c_int64 * 4)(*tensor.shape[::-1])
        handles[tensor.name] = ggml_new_tensor(context, QuantType.F32.id, len(tensor.shape), shape)
        ggml_set_name(handles[tensor.name], tensor.name.encode())
    chosen = [name for name, handle in handles.items() if allows(state, handle)]
    result = (ctypes.c_int * len(chosen))()
    compute(state, LEVELS[level].file_type, (P * len(chosen))(*(handles[n] for n in chosen)), result, len(chosen))
    types = dict.fromkeys(handles, "F32") | {
        name: QuantType.by_id(number).name for name, number in zip(chosen, result, strict=True)
    }
    ggml_free(context)
    free_state(state)
    llama_cpp.llama_model_free(model)
    return types


def shapes(layers: int, width: int, feed_forward: int, experts: int, tied: bool) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (64, width), "output_norm.weight": (width,)}
    if not tied:
        found["output.weight"] = (64, width)
    for layer in range(layers):
        at = f"blk.{layer}."
        found |= {at + f"{part}.weight": (width,) for part in ("attn_norm", "ffn_norm")}
        found |= {at + f"attn_{part}.weight": (width, width) for part in ("q", "k", "v", "output")}
        found |= {at + "attn_q.bias": (width,)}
        stack, suffix = ((experts,), "_exps") if experts else ((), "")
        found |= {at + f"ffn_{part}{suffix}.weight": (*stack, feed_forward, width) for part in ("gate", "up")}
        found |= {at + f"ffn_down{suffix}.weight": (*stack, width, feed_forward)}
        if experts:
            found |= {at + "ffn_gate_inp.weight": (experts, width)}
    return found


MODELS = {
    "small, tied": (6, 256, 768, 8, 4, 0, True),
    "one layer": (1, 256, 256, 4, 4, 0, False),
    "odd depth, wide groups": (22, 512, 1024, 32, 4, 0, False),
    "the 70 B": (80, 256, 512, 64, 8, 0, False),
    "eight experts": (32, 256, 512, 32, 8, 8, False),
    "four experts": (16, 256, 512, 8, 4, 4, False),
    "sixteen experts": (9, 256, 512, 8, 8, 16, True),
    "rows of 96": (16, 96, 288, 8, 2, 0, False),
    "rows of 320 and 864, tied": (30, 320, 864, 5, 5, 0, True),
    "rows of 100": (4, 100, 256, 4, 1, 0, True),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("level", LEVELS)
def test_types_are_those_of_llama_cpp(model: str, level: str) -> None:
    layers, width, feed_forward, heads, shared, experts, tied = MODELS[model]
    if level == "Q1_0" and width % 128:
        pytest.skip("llama.cpp ends the process where it knows no other type for a row")
    plan = bare_plan(
        shapes(layers, width, feed_forward, experts, tied),
        block_count=layers,
        attention__head_count=heads,
        attention__head_count_kv=shared,
        expert_count=experts,
    )
    assert {name: type.name for name, type in assign(plan, level).items()} == reference(plan, level)


def test_types_come_in_the_order_of_the_plan() -> None:
    plan = bare_plan(
        dict(reversed(shapes(2, 256, 256, 0, False).items())),
        block_count=2,
        attention__head_count=4,
        attention__head_count_kv=4,
    )
    assert list(assign(plan, "q4_k_m")) == [tensor.name for tensor in plan.tensors]


def test_sizes_add_up_and_fall_down_the_ladder() -> None:
    plan = bare_plan(shapes(8, 512, 1024, 0, False), block_count=8, attention__head_count=8, attention__head_count_kv=4)
    assert weights_bytes(plan, "F32") == 4 * plan.parameters
    norms = sum(tensor.elements for tensor in plan.tensors if not quantizable(tensor))
    assert weights_bytes(plan, "BF16") == 2 * plan.parameters + 2 * norms
    down = [weights_bytes(plan, level) for level in LADDER]
    assert down == sorted(down, reverse=True)


def test_bits_are_those_of_a_llama_of_8_b_and_sort_the_levels() -> None:
    width, feed_forward = 4096, 14_336
    parts = {"q": (width, width), "k": (1024, width), "v": (1024, width), "output": (width, width)}
    wide = {"gate": (feed_forward, width), "up": (feed_forward, width), "down": (width, feed_forward)}
    model: dict[str, tuple[int, ...]] = {"token_embd.weight": (128_256, width), "output.weight": (128_256, width)}
    for layer in range(32):
        model |= {f"blk.{layer}.attn_{part}.weight": shape for part, shape in parts.items()}
        model |= {f"blk.{layer}.ffn_{part}.weight": shape for part, shape in wide.items()}
    plan = bare_plan(model, block_count=32, attention__head_count=32, attention__head_count_kv=8)
    for level in LEVELS.values():
        # A model without experts has nothing that MXFP4_MOE would make small.
        if level.name != "MXFP4_MOE":
            assert weights_bytes(plan, level.name) * 8 / plan.parameters == pytest.approx(level.bits, abs=0.006)
    bits = [level.bits for level in LEVELS.values()]
    assert bits == sorted(bits, reverse=True)


def test_an_unknown_level_lists_those_there_are() -> None:
    with pytest.raises(UnknownLevel, match="`Q9`") as caught:
        assign(bare_plan({}), "Q9")
    assert "Q4_K_M" in caught.value.hint
