"""Every architecture against transformers: small random models, the same logits; and each transform is needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quant.convert import FAMILIES, plan_model
from quant.plan import ModelPlan
from quant.recipes import LEVELS, assign
from tests.converting import write
from tests.quant import matrix
from tests.quant.engine import RANK, Engine
from tests.quant.support import Folder
from tests.quant.zoo import ZOO, make, reference, texts

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("default")]
IDS = np.random.default_rng(1).integers(3, 4096, 200).tolist()
# Fewer than the prompt has tokens, so that it takes several batches.
BATCH = 96
TOLERANCE = 1e-3


@pytest.fixture(scope="module", params=ZOO)
def row(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(row: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Folder, np.ndarray]]:
    """The model's files, and the logits that it ought to have."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    path = make(ZOO[row], tmp_path_factory.mktemp("model"))
    yield Folder(path), reference(path, ZOO[row], IDS)


def difference(plan: ModelPlan, folder: Folder, wanted: np.ndarray, path: Path) -> float:
    """The largest difference to the wanted logits, in their standard deviations."""
    write(plan, "F32", folder.stream, path)
    with Engine(path) as engine:
        found = answer(engine, plan)
        worst = float(np.abs(found - wanted).max() / wanted.std())
        return worst if np.isfinite(worst) else np.inf


def answer(engine: Engine, plan: ModelPlan) -> np.ndarray:
    """What the engine computes of `IDS`."""
    if "rerank" in plan.capabilities:
        return np.array([engine.vectors(text, RANK)[0, 0] for text in texts(IDS)])
    return engine.vectors(IDS) if "embedding" in plan.capabilities else engine.logits(IDS, BATCH)


def test_logits_are_those_of_transformers(row: str, model: tuple[Folder, np.ndarray], tmp_path: Path) -> None:
    folder, wanted = model
    plan = plan_model(folder)
    # A probability has less room.
    assert wanted.std() > (0.25 if wanted.min() > 0 and wanted.max() < 1 else 1)
    assert len(plan.shards) > 1
    found = difference(plan, folder, wanted, tmp_path / "m.gguf")
    matrix.note(row, "logits", f"{found:.0e}")
    matrix.note(row, "tied", "yes" if all(tensor.name != "output.weight" for tensor in plan.tensors) else "no")
    matrix.note(row, "shards", str(len(plan.shards)))
    matrix.note(row, "experts", str(plan.metadata.get(f"{plan.architecture}.expert_count", "-")))
    assert found <= TOLERANCE


def test_every_transform_is_needed(row: str, model: tuple[Folder, np.ndarray], tmp_path: Path) -> None:
    folder, wanted = model
    plan = plan_model(folder)
    kinds = {(type(tensor.transform), len(tensor.shape)) for tensor in plan.tensors if tensor.transform}
    for kind, dimensions in kinds:
        bare = [
            replace(tensor, transform=None)
            if type(tensor.transform) is kind and len(tensor.shape) == dimensions
            else tensor
            for tensor in plan.tensors
        ]
        assert difference(replace(plan, tensors=tuple(bare)), folder, wanted, tmp_path / "m.gguf") > 10 * TOLERANCE
    computed = tuple(tensor for tensor in plan.tensors if tensor.shard)
    if len(computed) < len(plan.tensors):
        assert difference(replace(plan, tensors=computed), folder, wanted, tmp_path / "m.gguf") > 10 * TOLERANCE
    names = sorted({kind.__name__ for kind, _ in kinds} | ({"tables"} if len(computed) < len(plan.tensors) else set()))
    matrix.note(row, "transforms", " ".join(names) or "-")


@pytest.mark.slow
def test_every_level_loads_and_answers(row: str, model: tuple[Folder, np.ndarray], tmp_path: Path) -> None:
    """Rows of other than whole blocks fall back on other types, as llama.cpp has it, so all of them are tried."""
    if "," in row:
        pytest.skip("levels do not depend on the variant")
    folder, wanted = model
    plan = plan_model(folder)
    # In rows this short many levels come to the same types; each mixture is tried once.
    mixtures = {frozenset(assign(plan, level).items()): level for level in LEVELS}
    for level in mixtures.values():
        write(plan, level, folder.stream, tmp_path / "m.gguf")
        with Engine(tmp_path / "m.gguf") as engine:
            found = engine.vectors(IDS[:8]) if "embedding" in plan.capabilities else engine.logits(IDS[:8])
        assert np.isfinite(found).all(), level
        assert found.std() > wanted.std() / 4, level
    matrix.note(row, "levels", f"{len(LEVELS)} ({len(mixtures)})")


def test_every_family_has_a_row() -> None:
    architectures = {family.architecture for family in FAMILIES.values()}
    assert architectures <= {name.split(",")[0] for name in ZOO}
