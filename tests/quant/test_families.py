"""A family's table is checked when its module is imported, and the example that explains it is one that works."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, replace
from typing import Any

import pytest

from quant.convert import base
from quant.convert.base import Family, Known, Sizes, Target, Times, tensor
from quant.convert.config import ModelConfig
from quant.convert.families.llama import LLAMA
from quant.convert.families.table import FAMILIES
from quant.convert.placing import plan_tensors
from quant.convert.transforms import AddOne
from quant.safetensors import DTYPES, Entry
from tests.quant.support import Folder


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (tensor("a.weight", "b.weight", "vocabulary", "wdth"), "the size `wdth`"),
        (tensor("a.weight", "b.weight", Times(2, "feed_foward")), "the size `feed_foward`"),
        (tensor("a.weight", "b.weight", "width", becomes=("widht", 1)), "the size `widht`"),
        (Known("a.weight", (Target("b"), Target("c", ("haeds",))), ("width",)), "the size `haeds`"),
        (replace(tensor("a.weight", "b.weight", "width"), skip="skiped"), "the size `skiped`"),
        (tensor("experts.[].weight", "b.weight", "width"), "the size `experts`"),
        (tensor("layers.{}.weight", "b.weight", "width", layers="dens"), "the layers `dens`"),
        # A length is no set of layers.
        (tensor("layers.{}.weight", "b.weight", "width", layers="heads"), "the layers `heads`"),
    ],
)
def test_a_misspelt_size_is_an_error_at_import(row: Known, name: str) -> None:
    with pytest.raises(TypeError, match=f"`llama`: `{row.source}` names {name}".replace("[", r"\[")):
        replace(LLAMA, tensors=(*LLAMA.tensors, row))


def test_every_class_has_one_family() -> None:
    listed = [name for family in {id(each): each for each in FAMILIES.values()}.values() for name in family.classes]
    assert sorted(listed) == sorted(FAMILIES)


def example() -> dict[str, Any]:
    """What the example in `base.py` defines."""
    lines = (base.__doc__ or "").splitlines()
    code = "\n".join(line for line in lines if line.startswith("    "))
    names = {**vars(base), "AddOne": AddOne, "dataclass": dataclass}
    exec(textwrap.dedent(code), names)
    return names


def entries(shapes: dict[str, tuple[int, ...]]) -> list[Entry]:
    found, offset = [], 0
    for name, shape in shapes.items():
        size = DTYPES["F32"]
        for length in shape:
            size *= length
        found.append(Entry(name, "F32", shape, "model.safetensors", offset, size))
        offset += size
    return found


def test_the_example_plans_a_model() -> None:
    toy: Family[Any] = example()["TOY"]
    config = ModelConfig(
        "config.json",
        {
            "vocab_size": 10,
            "hidden_size": 4,
            "num_hidden_layers": 2,
            "intermediate_size": 6,
            "num_experts": 3,
            "tie_word_embeddings": True,
        },
    )
    sizes = toy.read_sizes(config)
    assert isinstance(sizes, Sizes)
    source = {
        "model.embed_tokens.weight": (10, 4),
        "model.norm.weight": (4,),
        "model.layers.0.mlp.gate_up.weight": (12, 4),
        "model.layers.1.mlp.gate_up.weight": (12, 4),
        **{f"model.layers.1.experts.{number}.down.weight": (4, 6) for number in range(3)},
    }
    planned = plan_tensors(toy, config, sizes, entries(source), Folder())
    assert {each.name: each.shape for each in planned} == {
        "token_embd.weight": (10, 4),
        "output_norm.weight": (4,),
        "blk.0.ffn_gate.weight": (6, 4),
        "blk.0.ffn_up.weight": (6, 4),
        "blk.1.ffn_gate.weight": (6, 4),
        "blk.1.ffn_up.weight": (6, 4),
        "blk.1.ffn_down_exps.weight": (3, 4, 6),
    }
    changed = [each.name for each in planned if each.transform]
    assert changed == ["output_norm.weight"]
    assert sum(each.size for each in planned) == sum(entry.size for entry in entries(source))
