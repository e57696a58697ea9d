"""Blocks that predict further tokens: kept where llama.cpp drafts with them, left out and said elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quant.convert.planning import plan_model, sketch_model
from quant.plan import NEXT_TOKEN_LAYERS, ModelPlan
from tests.quant.support import Folder, safetensors
from tests.quant.test_qwen_linear import Tensors, read
from tests.quant.zoo import sketched
from tests.quant.zoo.sketched import PREDICTING

_BLOCK = {f"nextn.{name}.weight" for name in ("eh_proj", "enorm", "hnorm", "shared_head_norm")}
# Families whose block has a place of its own for the embedding and the output.
_COPIED = [row for row in PREDICTING if not row.startswith("qwen")]


def made(row: str, folder: Path) -> tuple[Folder, Tensors]:
    source = Folder(sketched.make(PREDICTING[row], folder / "model"))
    return source, read(source.contents["model.safetensors"])


def block_of(plan: ModelPlan) -> set[str]:
    last = plan.metadata[f"{plan.architecture}.block_count"] - 1
    names = (tensor.name for tensor in plan.tensors)
    return {name.removeprefix(f"blk.{last}.") for name in names if name.startswith(f"blk.{last}.nextn.")}


@pytest.mark.parametrize("row", PREDICTING)
def test_the_block_is_a_layer_behind_the_last_one_and_counted(row: str, tmp_path: Path) -> None:
    source, _ = made(row, tmp_path)
    plan = plan_model(source)
    layers = json.loads(source.contents["config.json"])["num_hidden_layers"]
    assert plan.left_out == {} and plan.metadata[f"{plan.architecture}.nextn_predict_layers"] == 1
    assert plan.metadata[f"{plan.architecture}.block_count"] == layers + 1
    assert block_of(plan) >= _BLOCK
    recurrent = plan.metadata.get(f"{plan.architecture}.attention.recurrent_layers")
    assert recurrent is None or (len(recurrent) == layers + 1 and recurrent[-1] is False)


@pytest.mark.parametrize("row", PREDICTING)
def test_a_block_in_part_is_left_out_and_the_model_is_that_without(row: str, tmp_path: Path) -> None:
    source, tensors = made(row, tmp_path)
    behind = {name for name in tensors if name.startswith("mtp.") or (".layers.3." in f".{name}" and "qwen" not in row)}
    lost = min(behind)
    part = {name: each for name, each in tensors.items() if name != lost}
    plan = sketch_model(source.with_file("model.safetensors", safetensors(part)))
    assert plan.left_out == {NEXT_TOKEN_LAYERS: sum(len(tensors[name][2]) for name in behind - {lost})}
    none = {name: each for name, each in tensors.items() if name not in behind}
    without = sketch_model(source.with_file("model.safetensors", safetensors(none)))
    assert without.left_out == {} and without.metadata == plan.metadata
    assert [tensor.name for tensor in without.tensors] == [tensor.name for tensor in plan.tensors]


@pytest.mark.parametrize("row", _COPIED)
def test_copies_of_the_models_embedding_and_output_stay_behind(row: str, tmp_path: Path) -> None:
    source, tensors = made(row, tmp_path)
    own = {"nextn.embed_tokens.weight", "nextn.shared_head_head.weight"}
    assert block_of(plan_model(source)) == _BLOCK | own
    copied = dict(tensors)
    copied["model.layers.3.embed_tokens.weight"] = tensors["model.embed_tokens.weight"]
    copied["model.layers.3.shared_head.head.weight"] = tensors["lm_head.weight"]
    plan = sketch_model(source.with_file("model.safetensors", safetensors(copied)))
    assert block_of(plan) == _BLOCK and plan.left_out == {}
