"""Layouts of packed weights by bits and groups, and families of models whose matrices are packed in each of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from quant.types import QuantType as T
from tests.quant import test_packed as integers
from tests.quant import test_packed_floats as floats
from tests.quant import test_ternary as ternary
from tests.quant import test_unpacked as bytes_apart
from tests.quant.packed_sources import Packer, Tensors, raw
from tests.quant.support import DEMO, Folder, safetensors
from tests.quant.test_mlx import EXPERT, NUMBERED, SHIFTED
from tests.quant.zoo.making import weight
from tests.quant.zoo.mixtures import DEEPSEEK_V3
from tests.quant.zoo.recurrent import QWEN_LINEAR_EXPERTS
from tests.quant.zoo.sketched import Sketch, shapes

_WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 64}
_EXPERTS = {"moe_intermediate_size": 256, "num_experts_per_tok": 2, "norm_topk_prob": True}
# Heads of values in linear attention fill blocks of 128: what Qwen publishes has such ones.
_LINEAR = {
    "num_experts": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "shared_expert_intermediate_size": 256,
}
_LATENT = {
    "n_routed_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 256,
    "kv_lora_rank": 256,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "v_head_dim": 64,
    "num_key_value_heads": 4,
}
_GPT_2 = {
    "n_embd": 256,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 512,
    **dict.fromkeys(("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")),
    **dict.fromkeys(("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta")),
}
_GEMMA = {"sliding_window": 64, "query_pre_attn_scalar": 64, "tie_word_embeddings": True}
FAMILIES = {
    "llama": Sketch("LlamaForCausalLM", _WIDE),
    "qwen2": Sketch("Qwen2ForCausalLM", {**_WIDE, "head_dim": None}),
    "qwen3moe": Sketch("Qwen3MoeForCausalLM", {**_WIDE, **_EXPERTS, "num_experts": 2}),
    "gemma3": Sketch("Gemma3ForCausalLM", {**_WIDE, **_GEMMA}, bare=()),
    "phi3": Sketch("Phi3ForCausalLM", {**_WIDE, "head_dim": None}),
    "qwen3next": Sketch("Qwen3NextForCausalLM", {**QWEN_LINEAR_EXPERTS, **_WIDE, **_EXPERTS, **_LINEAR}),
    "deepseek2": Sketch("DeepseekV3ForCausalLM", {**DEEPSEEK_V3, **_WIDE, **_EXPERTS, **_LATENT, "head_dim": None}),
    "gpt2": Sketch("GPT2LMHeadModel", {**_WIDE, **_GPT_2}, prefix="transformer."),
}
# Matrices that the tools leave as they are: routers, convolutions, tables, outputs, and what has too few rows.
_LEFT = re.compile(r".*(\.gate|shared_expert_gate|in_proj_ba|conv1d|embed_tokens|lm_head|wte|wpe)\.weight")


class Layout(NamedTuple):
    """How a tool packs a matrix; `group` is the columns of a group, 0: all of a row, and the `type` holds the codes.

    `why` is a letter of the page's list, for layouts whose codes no type holds. `config` is that of the model.
    """

    title: str
    config: dict[str, Any]
    pack: Callable[[Packer], Tensors]
    bits: int
    group: int
    type: T | None
    symmetric: bool = True
    why: str = ""

    @property
    def mlx(self) -> bool:
        """Whether MLX lays the model out: experts in stacks, norms shifted."""
        return "quantization" in self.config


def _named(kind: str, bits: int, group: int, zeros: str = "") -> str:
    return f"{kind}, {bits} bits{zeros}, {f'groups of {group}' if group else 'rows'}"


def _gptq() -> Iterator[Layout]:
    for bits, symmetric, type in ((4, True, T.Q4_0), (4, False, T.Q4_1), (2, True, T.Q4_0), (3, True, T.Q4_0)):
        for group in (32, 128, 0) if bits == 4 else (64,):
            config = integers.of_gptq(bits=bits, sym=symmetric, group_size=group or -1)
            title = _named("GPTQ", bits, group, "" if symmetric else " with zeros")
            yield Layout(title, config, integers.gptq, bits, group, type, symmetric)
    yield Layout("GPTQ, 8 bits, groups of 128", integers.of_gptq(bits=8), integers.gptq, 8, 128, T.Q8_0)
    config = integers.of_gptq(bits=8, sym=False)
    yield Layout("GPTQ, 8 bits with zeros, groups of 128", config, integers.gptq, 8, 128, None, False, "b")
    config = integers.of_gptq(desc_act=True)
    yield Layout("GPTQ, 4 bits, columns out of order", config, _out_of_order, 4, 64, None, True, "c")


def _out_of_order(p: Packer) -> Tensors:
    order = np.random.default_rng(p.rows).permutation(np.arange(p.columns, dtype="<i4") // (p.columns // p.groups))
    floats.told(p, (p.codes - p.zeros[:, order].astype(np.float32)) * p.scales[:, order].astype(np.float32))
    return integers.gptq(p, order=order)


def _awq() -> Iterator[Layout]:
    for group in (32, 128):
        yield Layout(_named("AWQ", 4, group, " with zeros"), integers.AWQ, integers.awq, 4, group, T.Q4_1, False)
    yield Layout("AWQ, gemv, 4 bits with zeros, groups of 32", integers.GEMV, integers.gemv, 4, 32, T.Q4_1, False)


def _compressed() -> Iterator[Layout]:
    for bits, symmetric, group, type in (
        (4, True, 32, T.Q4_0),
        (4, True, 128, T.Q4_0),
        (4, False, 128, T.Q4_1),
        (3, True, 128, T.Q4_0),
        (5, True, 128, T.Q5_0),
        (5, False, 128, T.Q5_1),
        (6, True, 128, T.Q8_0),
        (8, True, 128, T.Q8_0),
        (8, False, 128, None),
    ):
        config = integers.scheme("pack-quantized", bits, symmetric)
        config["config_groups"]["group_0"]["weights"]["group_size"] = group
        title = _named("compressed-tensors", bits, group, "" if symmetric else " with zeros")
        why = "" if type else "b"
        yield Layout(title, {"quantization_config": config}, integers.compressed, bits, group, type, symmetric, why)
    config = {"quantization_config": integers.scheme("int-quantized", 8, True, "channel")}
    yield Layout("compressed-tensors, whole bytes, rows", config, integers.compressed_whole, 8, 0, T.Q8_0)


def _mlx() -> Iterator[Layout]:
    for bits, type in ((2, T.Q4_1), (3, T.Q4_1), (4, T.Q4_1), (5, T.Q5_1), (6, None), (8, None)):
        for group in (32, 64, 128) if bits == 4 else (64,):
            config = {"quantization": {"group_size": group, "bits": bits}}
            yield Layout(_named("MLX", bits, group), config, integers.mlx, bits, group, type, True, "" if type else "b")
    for mode, group, bits, type, pack in (
        ("mxfp4", 32, 4, T.MXFP4, lambda p: floats.mxfp4(p, "weight", "scales", words=True)),
        ("nvfp4", 16, 4, T.NVFP4, floats.nvfp4),
        ("nvfp4", 16, 4, T.NVFP4, floats.scaled_nvfp4),
        ("mxfp8", 32, 8, None, lambda p: floats.fp8(p, "U8", (), words=True)),
    ):
        title = f"MLX, {mode.upper()}" + (", scaled" if pack is floats.scaled_nvfp4 else "")
        why = "d" if pack is floats.scaled_nvfp4 else "" if type else "a"
        yield Layout(title, floats.of_mlx(mode, group, bits), pack, bits, group, type, True, why)


def _small_floats() -> Iterator[Layout]:
    config = floats.compressed("mxfp4-pack-quantized")
    yield Layout("compressed-tensors, MXFP4", config, floats.mxfp4, 4, 32, T.MXFP4)
    for title, config, name, divides in (
        ("compressed-tensors, NVFP4", floats.compressed("nvfp4-pack-quantized"), "weight_global_scale", True),
        ("modelopt, NVFP4", floats.MODELOPT, "weight_scale_2", False),
    ):
        pack = lambda p, name=name, divides=divides: floats.nvfp4(p, name, divides)  # noqa: E731
        yield Layout(title, config, pack, 4, 16, T.NVFP4, True, "d")
    yield Layout(
        "compressed-tensors, FP8, squares", config, lambda p: floats.fp8(p, "F32", (128,)), 8, 0, None, why="a"
    )
    yield Layout("modelopt, FP8, one scale", floats.MODELOPT, lambda p: floats.fp8(p, "F32", ()), 8, 0, None, why="a")
    for kind in ("nf4", "fp4"):
        pack = lambda p, kind=kind: floats.bitsandbytes(p, nested=kind == "nf4", kind=kind)  # noqa: E731
        yield Layout(f"bitsandbytes, {kind.upper()}, blocks of 64", floats.BNB, pack, 4, 64, None, True, "a")
    yield Layout("bitsandbytes, 8 bits, rows", floats.BNB, floats.whole_bytes, 8, 0, T.Q8_0)


def _others() -> Iterator[Layout]:
    hqq = bytes_apart.HQQ
    for bits, type in ((2, T.Q4_1), (3, T.Q4_1), (4, T.Q4_1), (8, None)):
        yield Layout(_named("HQQ", bits, 32), hqq, bytes_apart.hqq, bits, 32, type, True, "" if type else "b")
    yield Layout("HQQ, 4 bits, groups across rows", hqq, lambda p: bytes_apart.hqq(p, 0), 4, 32, None, True, "c")
    for bits, mapping, type in ((4, "SYMMETRIC", T.Q4_0), (4, "ASYMMETRIC", T.Q5_0), (8, "SYMMETRIC", T.Q8_0)):
        symmetric = mapping == "SYMMETRIC"
        title = _named("torchao", bits, 32, "" if symmetric else " with zeros")
        yield Layout(title, bytes_apart.torchao(bits, mapping), bytes_apart.ao, bits, 32, type, symmetric)
    yield Layout("BitNet, ternary, one scale", ternary.of_bitnet(), ternary.bitnet, 2, 0, T.TQ2_0)


LAYOUTS = (*_gptq(), *_awq(), *_compressed(), *_mlx(), *_small_floats(), *_others())


def models(layout: Layout, family: str) -> tuple[Folder, Folder, set[str]]:
    """A model of the family as the tool packs it, the same with the numbers that the codes stand for, and a set.

    The set has the names of the packed matrices, as the second model has them.
    """
    sketch = FAMILIES[family]
    packed: Tensors = {}
    whole: Tensors = {}
    stacks: dict[str, list[tuple[str, tuple[int, ...], bytes]]] = {}
    names = set()
    for name, shape in sorted(shapes(sketch).items(), key=lambda item: [int(n) for n in re.findall(r"\d+", item[0])]):
        x = _plain(name.removeprefix(sketch.prefix), shape)
        expert = EXPERT.fullmatch(name) if layout.mlx else None
        if len(shape) != 2 or _LEFT.fullmatch(name):
            whole[name] = raw(x)
            packed |= _as_mlx_has(name, x) if layout.mlx and family == "qwen3next" else {name: raw(x)}
            continue
        names.add(name)
        packer = Packer(*shape, layout.bits, layout.symmetric, shape[1] // layout.group if layout.group else 1)
        tensors = layout.pack(packer)
        whole[name] = raw(np.ascontiguousarray(_values(layout, packer), "<f4"))
        if expert:
            base = f"{expert[1]}.switch_mlp.{NUMBERED.get(expert[3], expert[3])}."
            for part, tensor in tensors.items():
                stacks.setdefault(base + part, []).append(tensor)
        else:
            packed |= {name.removesuffix("weight") + part: tensor for part, tensor in tensors.items()}
    for name, parts in stacks.items():
        dtype, shape, _ = parts[0]
        packed[name] = dtype, (len(parts), *shape), b"".join(data for *_, data in parts)
    return _folder(sketch, packed, layout.config), _folder(sketch, whole, {}), names


@cache
def _plain(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return weight(name, shape, 1.0).astype("<f4")


def _values(layout: Layout, packer: Packer) -> np.ndarray:
    if hasattr(packer, "told"):
        return packer.told
    return packer.affine if layout.pack is integers.mlx else packer.values


def _as_mlx_has(name: str, x: np.ndarray) -> Tensors:
    """A tensor that mlx-lm changes as it reads Qwen's models with linear attention."""
    if SHIFTED.fullmatch(name):
        return {name: raw(x + np.float32(1))}
    return {name: raw(np.ascontiguousarray(np.moveaxis(x, 2, 1))) if "conv1d" in name else raw(x)}


def _folder(sketch: Sketch, tensors: Tensors, more: dict[str, Any]) -> Folder:
    contents = {name: (DEMO / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    config = json.dumps({**sketch.settings(), **more}).encode()
    return Folder(contents={**contents, "model.safetensors": safetensors(tensors), "config.json": config})
