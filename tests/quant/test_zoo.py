"""Every architecture against transformers: small random models, the same logits; and each transform is needed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from quant.convert import FAMILIES, plan_model
from quant.plan import ModelPlan, TensorPlan
from quant.recipes import LEVELS, assign
from quant.safetensors import DTYPES, read_model
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
HARD = "  Don't\tstop…\r\n\n12345.67 naïve café 日本語 👩‍👧 ខ្មែរ العربية <|im_end|>if (x) { return y; }   "


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
    ids = Tokenizer.from_str(folder.contents["tokenizer.json"].decode()).encode(HARD, add_special_tokens=False).ids
    with Engine(tmp_path / "m.gguf", vocabulary_only=True) as engine:
        assert engine.tokenize(HARD, special=True) == ids
    matrix.note(row, "tokenizer", str(plan.metadata["tokenizer.ggml.pre"]))
    matrix.note(row, "tied", "yes" if all(tensor.name != "output.weight" for tensor in plan.tensors) else "no")
    matrix.note(row, "shards", str(len(plan.shards)))
    matrix.note(row, "experts", str(plan.metadata.get(f"{plan.architecture}.expert_count", "-")))
    assert found <= TOLERANCE


@dataclass(frozen=True)
class Beginning:
    """In place of a transform that takes some values of each part: as many from its beginning, as they lie."""

    share: float
    columns: int
    rows: int

    def apply(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(-1)[: round(x.size * self.share)].reshape(-1, self.columns)


def taken_out(tensor: TensorPlan) -> TensorPlan:
    """The tensor as it is without its transform."""
    read = sum(part.size for part in tensor.parts) // DTYPES[tensor.dtype]
    if not tensor.transform or read <= tensor.elements:
        return replace(tensor, transform=None)
    return replace(tensor, transform=Beginning(tensor.elements / read, tensor.columns, tensor.transform.rows))


def without(plan: ModelPlan, folder: Folder) -> Iterator[tuple[str, list[TensorPlan]]]:
    """Each thing that is done to the tensors of a plan by its name, and the tensors as they are without it."""

    def changed(wanted: Callable[[TensorPlan], bool]) -> list[TensorPlan]:
        return [taken_out(tensor) if wanted(tensor) else tensor for tensor in plan.tensors]

    tensors = plan.tensors
    for kind, dimensions in sorted({(type(t.transform), len(t.shape)) for t in tensors if t.transform}, key=str):

        def is_so(t: TensorPlan, kind: type = kind, dimensions: int = dimensions) -> bool:
            return type(t.transform) is kind and len(t.shape) == dimensions

        yield kind.__name__, changed(is_so)
    if any(not t.shard for t in tensors):
        yield "tables", [t for t in tensors if t.shard]
    # Experts in another order, but for their router.
    stacks = {t.name for t in tensors if len(t.parts) > 1 and "down_exps" in t.name}
    if stacks:
        yield "stack", [replace(t, parts=t.parts[::-1]) if t.name in stacks else t for t in tensors]
    # Two tensors that lie in one, the other way round.
    halves = [t.source for t in tensors if re.search("ffn_(gate|up)_", t.name)]
    shared = {source for source in halves if halves.count(source) == 2}
    if shared:
        swap = {"gate": "up", "up": "gate"}
        renamed = {t.name: re.sub("gate|up(?=[_.])", lambda found: swap[found[0]], t.name) for t in tensors}
        yield "split", [replace(t, name=renamed[t.name]) if t.source in shared else t for t in tensors]
    starts = {entry.name: entry.offset for entry in read_model(folder)}
    skipping = [t for t in tensors if t.shard and not t.parts and t.offset != starts[t.source]]
    if skipping:
        names = {t.name for t in skipping}
        yield "skip", [replace(t, offset=starts[t.source]) if t.name in names else t for t in tensors]


def test_every_transform_is_needed(row: str, model: tuple[Folder, np.ndarray], tmp_path: Path) -> None:
    folder, wanted = model
    plan = plan_model(folder)
    names = []
    for name, tensors in without(plan, folder):
        found = difference(replace(plan, tensors=tuple(tensors)), folder, wanted, tmp_path / "m.gguf")
        assert found > 10 * TOLERANCE, name
        names.append(name)
    matrix.note(row, "transforms", " ".join(sorted(set(names))) or "-")


@pytest.mark.slow
def test_every_level_loads_and_answers(row: str, model: tuple[Folder, np.ndarray], tmp_path: Path) -> None:
    """Rows of other than whole blocks fall back on other types, as llama.cpp has it, so all of them are tried."""
    folder, wanted = model
    plan = plan_model(folder)
    base = row.split(",")[0]
    if base != row and f"{plan.architecture}.expert_count" not in plan.metadata:
        matrix.note(row, "levels", f"as {base}")
        pytest.skip("levels do not depend on the variant")
    # In rows this short many levels come to the same types; each mixture is tried once.
    mixtures = {frozenset(assign(plan, level).items()): level for level in LEVELS}
    for level in mixtures.values():
        write(plan, level, folder.stream, tmp_path / "m.gguf")
        with Engine(tmp_path / "m.gguf") as engine:
            found = engine.vectors(IDS[:8]) if "embedding" in plan.capabilities else engine.generate(IDS[:8], 4)
        assert np.isfinite(found).all(), level
        assert found.std() > wanted.std() / 4, level
    matrix.note(row, "levels", f"{len(LEVELS)} ({len(mixtures)})")


def test_every_family_has_a_row() -> None:
    architectures = {family.architecture for family in FAMILIES.values()}
    assert architectures <= {name.split(",")[0] for name in ZOO}
