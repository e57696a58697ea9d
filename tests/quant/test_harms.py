"""Mixes by measured harms: within the bytes, better than the level's own types, with a reason; bad files refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quant.convert.planning import plan_model
from quant.errors import BadImportance
from quant.levels import budget, recipes
from quant.levels.harms import MeasuredHarms
from quant.plan import ModelPlan
from quant.stream.pipeline import Conversion
from quant.types import QuantType
from registry.sources.local import Folder
from registry.sources.opening import DEMO

K_LEVELS = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_M")


@pytest.fixture(scope="module")
def plan() -> ModelPlan:
    return plan_model(Folder(DEMO, "demo"))


@pytest.fixture(scope="module")
def harms(plan: ModelPlan) -> MeasuredHarms:
    """Harms that fall with the bits, of matrices that are felt more or less, by chance."""
    chance, found = np.random.default_rng(4), {}
    for tensor in filter(recipes.quantizable, plan.tensors):
        felt = float(np.exp(chance.normal(0, 1.5)))
        found[tensor.name] = {
            type: felt * 4.0**-type.bits_per_weight * float(chance.uniform(0.8, 1.25))
            for type in budget.candidates(tensor.columns)
        }
    return MeasuredHarms(found)


def total(harms: MeasuredHarms, types: dict[str, QuantType]) -> float:
    return sum(each[types[name]] for name, each in harms.expected.items())


def used(plan: ModelPlan, types: dict[str, QuantType]) -> int:
    return sum(tensor.nbytes for tensor in plan.at(types))


@pytest.mark.parametrize("level", K_LEVELS)
def test_a_named_level_is_the_better_mix_of_its_bytes(plan: ModelPlan, harms: MeasuredHarms, level: str) -> None:
    own, (types, reason) = recipes.assign(plan, level), budget.assignment(plan, level, harms)
    assert 0.98 * used(plan, own) <= used(plan, types) <= used(plan, own)
    assert total(harms, types) < 0.8 * total(harms, own)
    assert f"KL {total(harms, types):.4f} expected, {total(harms, own):.4f} with the level's own types" in reason
    assert Conversion(plan, level, harms=harms).types == types


def test_no_exchange_of_two_upgrades_is_better(plan: ModelPlan, harms: MeasuredHarms) -> None:
    """Against a search that knows nothing of hulls: raise one matrix, lower another one, within the bytes."""
    types = dict(budget.mix(plan, "4.5bpw", harms))
    limit, start = budget.limit(plan, "4.5bpw"), total(harms, types)
    room = limit - used(plan, types)
    matrices = {tensor.name: tensor for tensor in plan.tensors if tensor.name in harms.expected}
    best = start
    for name, up in matrices.items():
        for other, down in matrices.items():
            for better in harms.expected[name] if name != other else ():
                for worse in harms.expected[other]:
                    more = up.at(better).nbytes - up.at(types[name]).nbytes
                    less = down.at(types[other]).nbytes - down.at(worse).nbytes
                    if more - less <= room:
                        mine, its = harms.expected[name], harms.expected[other]
                        change = mine[better] - mine[types[name]] + its[worse] - its[types[other]]
                        best = min(best, start + change)
    assert best > 0.97 * start


def test_a_level_keeps_its_types_where_none_are_better(plan: ModelPlan) -> None:
    own = recipes.assign(plan, "Q4_K_M")
    one = {
        tensor.name: {type: float(type is not own[tensor.name]) for type in budget.candidates(tensor.columns)}
        for tensor in filter(recipes.quantizable, plan.tensors)
    }
    types, reason = budget.assignment(plan, "Q4_K_M", MeasuredHarms(one))
    assert types == own and "own types" in reason


@pytest.mark.parametrize("level", ["Q4_0", "Q8_0", "BF16", "IQ3_S"])
def test_other_levels_are_what_their_names_say(plan: ModelPlan, harms: MeasuredHarms, level: str) -> None:
    assert budget.assignment(plan, level, harms) == (recipes.assign(plan, level), "")


def test_matrices_that_nothing_was_measured_of_count_as_typical(plan: ModelPlan, harms: MeasuredHarms) -> None:
    some = MeasuredHarms({name: each for name, each in harms.expected.items() if "ffn" not in name})
    types = budget.mix(plan, "4.5bpw", some)
    assert 0.98 * budget.limit(plan, "4.5bpw") <= used(plan, types) <= budget.limit(plan, "4.5bpw")
    assert len({type for name, type in types.items() if "ffn" in name}) > 1


def test_without_harms_the_reason_says_why(plan: ModelPlan) -> None:
    types, reason = budget.assignment(plan, "Q4_K_M", MeasuredHarms(missing="nothing is whole"))
    assert types == recipes.assign(plan, "Q4_K_M") and reason == "types as for any model: nothing is whole"


def test_types_that_are_read_slowly_are_taken_less_where_speed_counts(plan: ModelPlan, harms: MeasuredHarms) -> None:
    """Within the same bytes, the time in which the mix is read is less, at more divergence."""
    slow = {type: 1.0 for type in QuantType} | {QuantType.IQ4_XS: 2.0, QuantType.Q5_K: 1.5, QuantType.Q2_K: 9.0}
    for level in ("Q4_K_M", "4.5bpw", "Q2_K", "2.8bpw"):
        quickly, reason = budget.assignment(plan, level, replace(harms, slowness=slow))
        best, _ = budget.assignment(plan, level, harms)
        assert 0.98 * budget.limit(plan, level) <= used(plan, quickly) <= budget.limit(plan, level)
        assert total(harms, quickly) >= 0.999 * total(harms, best)
        if level != "2.8bpw":  # there is no other way into these few bytes
            assert time(plan, quickly, slow) < time(plan, best, slow)
            assert "speed at which they are read here" in reason


def time(plan: ModelPlan, types: dict[str, QuantType], slow: dict[QuantType, float]) -> float:
    return sum(tensor.nbytes * slow[tensor.type] for tensor in plan.at(types))


def test_a_file_holds_harms_and_any_other_one_is_refused(harms: MeasuredHarms, tmp_path: Path) -> None:
    path = tmp_path / "harms.json"
    for whole in (harms, replace(harms, slowness={QuantType.Q4_K: 1.0, QuantType.IQ4_XS: 1.3})):
        path.write_bytes(whole.data)
        assert MeasuredHarms.read(path) == whole
    for bad in (
        b"",
        b"[]",
        b'{"format": 2, "expected": {}, "missing": "", "slowness": {}}',
        b'{"format": 1, "expected": {"a": {"Q9": 1}}, "missing": "", "slowness": {}}',
        b'{"format": 1, "expected": {"a": {"Q4_K": -1}}, "missing": "", "slowness": {}}',
        b'{"format": 1, "expected": {"a": {"Q4_K": NaN}}, "missing": "", "slowness": {}}',
        b'{"format": 1, "expected": {"a": 5}, "missing": "", "slowness": {}}',
        harms.data[:-3],
    ):
        path.write_bytes(bad)
        with pytest.raises(BadImportance, match="holds no measured harms"):
            MeasuredHarms.read(path)
