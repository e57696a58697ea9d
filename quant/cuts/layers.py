"""A model with fewer layers: their tensors are left out, those behind them get lower numbers, and so do entries."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from quant.errors import UnsupportedModel
from quant.plan import ModelPlan, TensorPlan

# Architectures of which llama.cpp computes every layer alike, or as a list with one entry for each layer says. In
# others the number of a layer decides what it is: one of six has a long window, every fourth has no positions.
_ALIKE = (
    "llama qwen2 qwen3 qwen2moe qwen3moe olmo olmo2 olmoe starcoder2 stablelm gpt2 phi2 gemma internlm2 granite "
    "granitemoe orion xverse command-r nemotron exaone baichuan bloom mpt falcon gptneox refact"
)
ALIKE = frozenset(_ALIKE.split())
# Lists whose length has nothing to do with the number of layers.
_NOT_OF_LAYERS = ("rope.dimension_sections", "rope.scaling.factors")
# Entries that say which layers something begins at, or counts.
_COUNTS = ("leading_dense_block_count", "nextn_predict_layers", "interleave_moe_layer_step")


def without_layers(plan: ModelPlan, dropped: Collection[int]) -> ModelPlan:
    """The plan without these layers; UnsupportedModel where they are none, or where layers of the model differ."""
    name = plan.architecture
    count = plan.metadata.get(f"{name}.block_count")
    if not isinstance(count, int) or name not in ALIKE:
        raise UnsupportedModel(
            f"layers of `{name}` are not dropped: what a layer is depends on its number there",
            f"it works for {', '.join(sorted(ALIKE)[:6])} and their like",
        )
    for key in _COUNTS:
        if plan.metadata.get(f"{name}.{key}", 0) not in (0, 1):
            raise UnsupportedModel(f"`{name}.{key}` counts layers, and none are dropped from such a model")
    if strays := sorted(set(dropped) - set(range(count))):
        raise UnsupportedModel(f"there is no layer {strays[0]}", f"layers are counted from 0 to {count - 1}")
    kept = [number for number in range(count) if number not in dropped]
    if not kept:
        raise UnsupportedModel("no layer would stay", "name some of them")
    numbers = {layer: number for number, layer in enumerate(kept)}
    tensors = [
        _renumbered(tensor, numbers) for tensor in plan.tensors if tensor.layer is None or tensor.layer in numbers
    ]
    metadata = {key: _entry(key, value, name, count, kept) for key, value in plan.metadata.items()}
    return replace(plan, metadata={**metadata, f"{name}.block_count": len(kept)}, tensors=tuple(tensors))


def _renumbered(tensor: TensorPlan, numbers: dict[int, int]) -> TensorPlan:
    if tensor.layer is None:
        return tensor
    return replace(tensor, name=f"blk.{numbers[tensor.layer]}.{tensor.name.split('.', 2)[2]}")


def _entry(key: str, value: Any, architecture: str, count: int, kept: list[int]) -> Any:
    short = key.removeprefix(f"{architecture}.")
    of_layers = isinstance(value, list) and short != key and short not in _NOT_OF_LAYERS and len(value) == count
    return [value[layer] for layer in kept] if of_layers else value
