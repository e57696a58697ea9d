"""Budgets: never above, at least 98 % used, no worse than the named level of the same size; and through a pull."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import quant
from benchmarks import shapes
from quant.convert.planning import plan_model
from quant.errors import UnknownLevel
from quant.gguf.check import check_model
from quant.gguf.header import read_file
from quant.levels import budget, recipes
from quant.plan import ModelPlan
from quant.stream.pipeline import Conversion
from quant.types import QuantType
from registry.sources.local import Folder
from registry.sources.opening import DEMO
from registry.words import canonical_level
from tests.converting import write
from tests.daemon import Daemon


@pytest.fixture(scope="module")
def plan() -> ModelPlan:
    return plan_model(Folder(DEMO, "demo"))


Weights = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def weights(plan: ModelPlan, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """The matrices of the demo, float32[rows, columns]."""
    path, folder = tmp_path_factory.mktemp("demo") / "demo.gguf", Folder(DEMO, "demo")
    write(plan, "F32", lambda shard: [folder.read(shard, 0, folder.size(shard))], path)
    header, raw = read_file(path), np.memmap(path)
    found = {}
    for tensor in header.tensors:
        if tensor.rows > 1:
            begin = header.data_offset + tensor.offset
            found[tensor.name] = raw[begin : begin + tensor.nbytes].view("<f4").reshape(-1, tensor.columns)
    return found


def error(x: np.ndarray, type: QuantType) -> float:
    """Squared error of the blocks of `x`, relative to the squares of `x`."""
    there = quant.dequantize(quant.quantize(x, type), type, x.shape[1])
    return float(((x - there) ** 2).sum() / (x**2).sum())


def distortion(plan: ModelPlan, types: dict[str, QuantType]) -> float:
    return sum(tensor.elements * budget.ERRORS.get(types[tensor.name], 0.0) for tensor in plan.tensors)


@pytest.mark.parametrize("bits", [2.9, 3.3, 3.9, 4.5, 5.2, 6.1, 7.7, 9, 12, 15.5])
def test_bits_per_weight_are_met_from_below(plan: ModelPlan, bits: float) -> None:
    written = Conversion(plan, f"{bits}bpw")
    used = 8 * sum(tensor.nbytes for tensor in written.tensors) / sum(tensor.elements for tensor in plan.tensors)
    assert 0.98 * bits <= used <= bits


@pytest.mark.parametrize("text", ["2.4MB", "3MB", "4MB", "5.5MB", "8MB", "4MiB", "3500KB"])
def test_bytes_are_those_of_the_whole_file(plan: ModelPlan, text: str) -> None:
    size = Conversion(plan, text, {"lm.source": "x" * 100}).size
    wanted = float(text[:-3]) * 1024**2 if "MiB" in text else float(text[:-2]) * {"KB": 1e3, "MB": 1e6}[text[-2:]]
    assert 0.98 * wanted <= size <= wanted


@pytest.mark.parametrize("level", ["Q6_K", "Q5_K_M", "Q4_K_M"])
def test_a_mix_of_a_levels_size_harms_the_weights_no_more(plan: ModelPlan, weights: Weights, level: str) -> None:
    """By errors measured on the demo's own weights, not by the table that the mix is made with."""
    named = recipes.assign(plan, level)
    bits = 8 * recipes.weights_bytes(plan, level) / sum(tensor.elements for tensor in plan.tensors)

    def harm(types: dict[str, QuantType]) -> float:
        factors = {tensor.name: budget.sensitivity(tensor, plan.tied) for tensor in plan.tensors}
        return sum(factors[name] * error(x, types[name]) for name, x in weights.items())

    assert harm(budget.mix(plan, f"{bits:.4f}bpw")) <= 1.02 * harm(named)


def test_more_room_never_distorts_more(plan: ModelPlan) -> None:
    harms = [distortion(plan, budget.mix(plan, f"{bits / 2}bpw")) for bits in range(6, 32)]
    assert harms == sorted(harms, reverse=True)


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_every_shape_meets_its_budget_from_below(name: str) -> None:
    plan = shapes.plan_of(shapes.SHAPES[name]())
    least, most = megabytes(plan, "1KB", "least"), megabytes(plan, "99TB", "most")
    for part in (0.02, 0.2, 0.5, 0.8, 0.97):
        level = f"{least + part * (most - least):.1f}MB"
        types, room = budget.mix(plan, level), budget.limit(plan, level)
        used = sum(tensor.nbytes for tensor in plan.at(types))
        assert 0.98 * room <= used <= room, level
    for impossible, why in ((least * 0.9, "is too little: the least is"), (most * 1.1, "is more than this model can")):
        with pytest.raises(UnknownLevel, match=why):
            budget.mix(plan, f"{impossible:.1f}MB")


def megabytes(plan: ModelPlan, impossible: str, which: str) -> float:
    """The least or the most that a budget can be for this model, as the refusal of another one says."""
    with pytest.raises(UnknownLevel) as refused:
        budget.mix(plan, impossible)
    found = re.search(rf"the {which} is ([\d,.]+) MB", str(refused.value))
    assert found
    return float(found[1].replace(",", ""))


def test_a_name_and_the_converter_agree_on_budgets() -> None:
    for text, written in {"4gb": "4GB", "4.5BPW": "4.5bpw", "3500Kb": "3500KB", "2gib": "2GiB", "1TIB": "1TiB"}.items():
        assert canonical_level(text) == written
        assert budget.is_budget(text) and budget.is_budget(written)
    for level in ("4GBS", "1234567GB", "4.12345GB", "4G", "GB"):
        assert canonical_level(level) == level
        assert not budget.is_budget(level)


def test_too_little_says_the_least(plan: ModelPlan) -> None:
    for text in ("100KB", "1.5bpw"):
        with pytest.raises(UnknownLevel, match=r"is too little: the least is [\d.]+ MB of weights"):
            budget.mix(plan, text)
    with pytest.raises(UnknownLevel):
        budget.limit(plan, "Q9_K")


@pytest.mark.slow
def test_a_pull_writes_the_mix_and_lists_it(tmp_path: Path) -> None:
    with Daemon(tmp_path) as daemon:
        told = daemon.post("/lm/advise", {"model": "demo", "level": "4.5bpw"}).json
        assert told["level"] == "4.5bpw"
        assert told["reason"].startswith("4.5bpw: asked for, ")
        assert daemon.pull("demo:4.5BPW")["name"] == "demo:4.5bpw"
        blob = max((tmp_path / "store" / "blobs").iterdir(), key=lambda path: path.stat().st_size)
        header = read_file(blob)
        check_model(header)
        assert len({tensor.type for tensor in header.tensors}) > 2
        assert daemon.post("/api/show", {"model": "demo"}).json["details"]["quantization_level"] == "4.5bpw"
