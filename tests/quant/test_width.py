"""Narrower feed-forwards: channels go greedily, the dead ones first, and exports compute what PyTorch does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.convert.gguf.source import plan_gguf
from quant.cuts.channels import choose
from quant.cuts.cut import cut
from quant.cuts.steps import kept_of, width_of
from quant.cuts.width import narrowed, save
from quant.cuts.wish import Cut
from quant.errors import BadValues, UnsupportedModel, WrongShape
from quant.gguf.header import read_file
from quant.plan import ModelPlan
from tests.converting import write
from tests.publishing import make
from tests.quant.support import DEMO, Folder
from tests.quant.test_cuts import IDS

WIDTH, KEEP, LAYERS = 768, 512, 6


def inputs(count: int, *, dead: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A Gram matrix of inputs that depend on one another, and a matrix."""
    random = np.random.default_rng(count)
    mixed = random.standard_normal((3 * count, count // 2)) @ random.standard_normal((count // 2, count))
    x = (mixed + 3 * random.standard_normal((3 * count, count))).astype(np.float32)
    x[:, random.permutation(count)[:dead]] = 0
    return x.T @ x, random.standard_normal((64, count)).astype(np.float32)


def one_by_one(gram: np.ndarray, weights: np.ndarray, keep: int) -> np.ndarray:
    """The definition: after each channel all columns are fitted anew by the inverse of what is left."""
    damped, left = gram.astype(float), list(range(len(gram)))
    damped[np.diag_indices(len(gram))] += 1e-3 * damped.diagonal().mean()
    while len(left) > keep:
        inverse = np.linalg.inv(damped[np.ix_(left, left)])
        fitted = weights @ damped[:, left] @ inverse
        costs = (fitted**2).sum(axis=0) / inverse.diagonal()
        left.pop(int(costs.argmin()))
    return np.array(left)


def test_the_choice_is_that_of_removing_one_after_the_other() -> None:
    gram, weights = inputs(320)
    np.testing.assert_array_equal(choose(gram, weights, 240).kept, one_by_one(gram, weights, 240))


def test_dead_channels_go_first_and_cost_nothing() -> None:
    gram, weights = inputs(128, dead=32)
    found = choose(gram, weights, 96)
    assert found.dead == 32 and found.lost == 0 and (gram.diagonal()[found.kept] > 0).all()
    assert not found.refit.any()
    more = choose(gram, weights, 64)
    assert set(more.kept) < set(found.kept) and 0 < more.lost < 1


def test_the_fit_is_that_of_least_squares() -> None:
    gram, weights = inputs(128)
    found = choose(gram, weights, 96)
    gone = np.setdiff1d(np.arange(128), found.kept)
    ours = weights[:, found.kept] + weights[:, gone] @ found.refit
    target = weights @ gram.astype(float)
    square = gram.astype(float)[np.ix_(found.kept, found.kept)]
    theirs = np.linalg.lstsq(square, target[:, found.kept].T, rcond=None)[0].T

    def error(columns: np.ndarray) -> float:
        rest = weights.astype(float).copy()
        rest[:, found.kept] -= columns
        return float(np.einsum("ij,ij->", rest @ gram, rest) / np.einsum("ij,ij->", target, weights))

    assert error(theirs) <= error(ours) <= 1.001 * error(theirs)
    assert error(ours) == pytest.approx(found.lost, rel=1e-3)


def test_values_that_are_not_finite_and_other_shapes_are_refused() -> None:
    gram, weights = inputs(64)
    broken = weights.copy()
    broken[3, 5] = np.nan
    with pytest.raises(BadValues):
        choose(gram, broken, 32)
    for keep in (0, 64, 65):
        with pytest.raises(WrongShape):
            choose(gram, weights, keep)


def test_shares_come_in_steps() -> None:
    assert kept_of(14336, 0.8) == 11520 and kept_of(1536, 0.8) == 1280 and kept_of(96, 0.5) == 32 * 2
    for share in (0.01, 0.99):
        with pytest.raises(UnsupportedModel, match="would stay: the width goes in steps of 256"):
            kept_of(1536, share)
    with pytest.raises(UnsupportedModel) as caught:
        kept_of(32, 0.3)
    assert caught.value.hint == "it is as narrow as can be"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> ModelPlan:
    path = make(tmp_path_factory.mktemp("whole") / "demo.gguf", "F32")
    return plan_gguf(Folder(path.parent))


def chosen(folder: Path) -> list[Any]:
    """Channels of every layer of the demo, by made-up inputs; their refits are dense."""
    random, found = np.random.default_rng(3), []
    for layer in range(LAYERS):
        x = random.standard_normal((900, 200)) @ random.standard_normal((200, WIDTH))
        x = (x + random.standard_normal(x.shape)).astype(np.float32)
        found.append(choose(x.T @ x, random.standard_normal((64, WIDTH)).astype(np.float32), KEEP))
        save(folder, layer, found[-1])
    return found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda plan: {"metadata": {**plan.metadata, "llama.feed_forward_length": [768] * 5 + [512]}},
            "differ in width",
        ),
        (lambda plan: {"tensors": _renamed(plan, "ffn_down", "ffn_down_exps")}, "a mixture is not"),
        (lambda plan: {"tensors": _renamed(plan, "ffn_down", "ffn_odd")}, "is not known"),
        (lambda plan: {"tensors": tuple(replace(each, dtype="Q8_0") for each in plan.tensors)}, "as it is"),
    ],
    ids=["layers", "mixture", "unknown", "quantized"],
)
def test_models_that_cannot_be_narrower_are_refused(
    plan: ModelPlan, tmp_path: Path, change: Callable[[ModelPlan], dict[str, Any]], said: str
) -> None:
    chosen(tmp_path)
    with pytest.raises(UnsupportedModel, match=said):
        narrowed(replace(plan, **change(plan)), tmp_path)


def _renamed(plan: ModelPlan, old: str, new: str) -> tuple[Any, ...]:
    return tuple(replace(each, name=each.name.replace(old, new)) for each in plan.tensors)


def test_a_layer_without_channels_of_its_own_is_refused(plan: ModelPlan, tmp_path: Path) -> None:
    chosen(tmp_path)
    (tmp_path / "kept-3.npy").unlink()
    with pytest.raises(UnsupportedModel, match=r"blk\.3\."):
        narrowed(plan, tmp_path)


@pytest.mark.oracle
def test_a_narrower_model_computes_what_transformers_does(plan: ModelPlan, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from tests.quant.engine import Engine, divergence

    channels = chosen(tmp_path)
    folder, path = Folder(make(tmp_path / "whole" / "demo.gguf", "F32").parent), tmp_path / "narrow.gguf"
    made = cut(plan, Cut(width=str(tmp_path), read="a text"))
    assert "512 of 768 channels stay" in made.reason and width_of(made.plan) == KEEP
    write(made.plan, "F32", folder.stream, path)
    assert read_file(path).metadata["lm.cut"] == '{"width": {"kept": 512, "of": 768, "by": "a text"}}'
    model: Any = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for layer, found in zip(model.model.layers, channels, strict=True):
            mlp, gone = layer.mlp, np.setdiff1d(np.arange(WIDTH), found.kept)
            down = mlp.down_proj.weight
            fitted = down[:, found.kept] + down[:, gone] @ torch.from_numpy(found.refit)
            mlp.down_proj.weight = torch.nn.Parameter(fitted)
            for one in (mlp.gate_proj, mlp.up_proj):
                one.weight = torch.nn.Parameter(one.weight[found.kept])
        theirs = model(torch.tensor([IDS]), use_cache=False).logits[0].double().numpy()
    with Engine(path) as engine:
        assert divergence(theirs, engine.logits(IDS)) <= 1e-6


@pytest.mark.slow
def test_a_narrower_model_takes_types_as_any(plan: ModelPlan, tmp_path: Path) -> None:
    chosen(tmp_path)
    folder = Folder(make(tmp_path / "whole" / "demo.gguf", "F32").parent)
    made = cut(plan, Cut(width=str(tmp_path), read="a text")).plan
    first = write(made, "Q4_K_M", folder.stream, tmp_path / "one.gguf", threads=1)
    assert write(made, "Q4_K_M", folder.stream, tmp_path / "two.gguf", threads=2) == first
    types = {each.name: (each.type.name, each.shape) for each in read_file(tmp_path / "one.gguf").tensors}
    assert types["blk.2.ffn_down.weight"] == ("Q6_K", (KEEP, 256)) and types["blk.2.ffn_up.weight"][1] == (256, KEEP)
