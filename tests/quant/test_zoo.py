"""Every architecture against transformers: small random models, the same logits; and each transform is needed."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from quant.convert.planning import FAMILIES, plan_model
from quant.levels.recipes import LEVELS, assign, quantizable
from quant.plan import ModelPlan, TensorPlan
from quant.safetensors import DTYPES, read_model
from tests.converting import write
from tests.quant.engine import RANK, Engine, EngineRefuses
from tests.quant.matrix import ARCHITECTURES
from tests.quant.support import Folder
from tests.quant.test_broken import check_configs
from tests.quant.zoo import ZOO
from tests.quant.zoo.making import make
from tests.quant.zoo.own_code import SKETCHES
from tests.quant.zoo.reference import attention, reference, texts
from tests.quant.zoo.row import Row

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("default")]
IDS = np.random.default_rng(1).integers(3, 4096, 200).tolist()
# Fewer than the prompt has tokens, so that it takes several batches.
BATCH = 96
TOLERANCE = 1e-3
# What GELU in half precision may add to that; nearly all of it is gone without the engine's table.
ROUNDED = 2e-2
# Entries by which no number changes: what tensors say too, what llama.cpp has built in or is asked for by its context,
# and names.
SILENT = (
    "vocab_size",
    "context_length",
    "attention.causal",
    "pooling_type",
    "classifier.output_labels",
    "hrm.prefix_lm",
)
# Entries that llama.cpp never reads, as it has the numbers built in.
BUILT_IN = {
    "gemma3n": (
        "attention.shared_kv_layers",
        "embedding_length_per_layer_input",
        "final_logit_softcapping",
        "altup.active_idx",
        "altup.num_inputs",
    )
}
# Sizes that tensors have too: llama.cpp refuses a file where they differ, or ends the process, so they are not tried.
SHAPES = re.compile(r".*(length|count|size|rank|kernel|cache|cycles|per_stack)(_mla|_swa|_kv)?")
CHOICES = (
    "expert_used_count",
    "expert_group_used_count",
    "rope.scaling.original_context_length",
    "rope.dimension_count",
)
# Whatever the weights, none of their tokens stands out by much.
FLAT = ("llama4",)
# The architectures of which llama.cpp reads YaRN's betas; converting others with odd ones is refused.
READS_BETAS = ("mistral3",)
HARD = "  Don't\tstop…\r\n\n12345.67 naïve café 日本語 👩‍👧 ខ្មែរ العربية <|im_end|>if (x) { return y; }   "


@pytest.fixture(scope="module", params=ZOO)
def row(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(row: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Folder, np.ndarray]]:
    """The model's files, and the logits that it ought to have."""
    path = make(ZOO[row], tmp_path_factory.mktemp("model"))
    yield Folder(path), reference(path, ZOO[row], IDS)


def difference(plan: ModelPlan, folder: Folder, wanted: np.ndarray, path: Path) -> float:
    """The largest difference to the wanted logits, in their standard deviations."""
    write(plan, "F32", folder.stream, path)
    return compared(path, plan, wanted)[0]


def check_logits(path: Path, row: Row, file: Path) -> None:
    """Convert the folder `path` to `file`, which must have the logits that transformers computes of the folder."""
    folder = Folder(path)
    assert difference(plan_model(folder), folder, reference(path, row, IDS), file) <= TOLERANCE


def compared(
    path: Path, plan: ModelPlan, wanted: np.ndarray, instead: Mapping[str, float] | None = None, exact: bool = True
) -> tuple[float, int]:
    """The same for a file, and how many activations were computed without the engine's table (`activation.py`)."""
    with Engine(path, instead=instead, exact=exact) as engine:
        worst = float(np.abs(answer(engine, plan) - wanted).max() / wanted.std())
        return worst if np.isfinite(worst) else np.inf, engine.gelu.seen if engine.gelu else 0


def answer(engine: Engine, plan: ModelPlan, ids: list[int] = IDS) -> np.ndarray:
    """What the engine computes of a text."""
    if "rerank" in plan.capabilities:
        return np.array([engine.vectors(text, RANK)[0, 0] for text in texts(ids)])
    return engine.vectors(ids) if "embedding" in plan.capabilities else engine.logits(ids, BATCH)


def test_logits_are_those_of_transformers(row: str, model: tuple[Folder, np.ndarray], tmp_path: Path) -> None:
    folder, wanted = model
    plan = plan_model(folder)
    # A probability has less room.
    assert wanted.std() > (0.25 if wanted.min() > 0 and wanted.max() < 1 else 1)
    assert len(plan.shards) > 1
    write(plan, "F32", folder.stream, tmp_path / "m.gguf")
    found, replaced = compared(tmp_path / "m.gguf", plan, wanted)
    rounded = compared(tmp_path / "m.gguf", plan, wanted, exact=False)[0] if replaced else found
    ARCHITECTURES.note(row, "logits", f"{found:.0e}" + (f" ({rounded:.0e})" if replaced else ""))
    ids = Tokenizer.from_str(folder.contents["tokenizer.json"].decode()).encode(HARD, add_special_tokens=False).ids
    with Engine(tmp_path / "m.gguf", vocabulary_only=True) as engine:
        assert engine.tokenize(HARD, special=True) == ids
    ARCHITECTURES.note(row, "tokenizer", str(plan.metadata["tokenizer.ggml.pre"]))
    ARCHITECTURES.note(row, "tied", "yes" if all(tensor.name != "output.weight" for tensor in plan.tensors) else "no")
    ARCHITECTURES.note(row, "shards", str(len(plan.shards)))
    ARCHITECTURES.note(row, "experts", str(plan.metadata.get(f"{plan.architecture}.expert_count", "-")))
    assert found <= TOLERANCE
    assert rounded <= (ROUNDED if replaced else TOLERANCE)


def test_attention_is_peaked(row: str, model: tuple[Folder, np.ndarray], tmp_path: Path) -> None:
    """Of 17 to 200 tokens one alone has a good part of all that is attended to."""
    for name, data in model[0].contents.items():
        (tmp_path / name).write_bytes(data)
    peaks = attention(tmp_path, ZOO[row], IDS)
    if not peaks or row in FLAT:
        pytest.skip("no attention, or heads that are normalized by nothing but their length")
    ARCHITECTURES.note(row, "attention", f"{np.mean(peaks):.2f}")
    assert np.mean(peaks) > 0.25
    assert min(peaks) > 0.1


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
    halves = [t.source for t in tensors if re.search("ffn_(gate|up)[_.]", t.name)]
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
        try:
            found = difference(replace(plan, tensors=tuple(tensors)), folder, wanted, tmp_path / "m.gguf")
        except EngineRefuses:
            found = np.inf
        assert found > 10 * TOLERANCE, name
        names.append(name)
    ARCHITECTURES.note(row, "transforms", " ".join(sorted(set(names))) or "-")


def wrong(name: str, value: Any, plan: ModelPlan) -> Any:
    """Another value for an entry, None where there is none to try."""
    shaped = SHAPES.fullmatch(name) and name not in CHOICES and isinstance(value, int)
    if (
        name in (*SILENT, *BUILT_IN.get(plan.architecture, ()))
        or shaped
        or ("yarn_beta" in name and plan.architecture not in READS_BETAS)
    ):
        return None
    if "epsilon" in name and (value < 1e-9 or plan.architecture == "minicpm3"):
        return None  # as DistilBERT has it, whatever its settings say; nobody notices ten times as much
    if name == "rope.dimension_count":
        # Where the whole head is rotated, or its last part, other values end the process.
        head = plan.metadata.get(f"{plan.architecture}.attention.key_length", 0)
        return value - 4 if value < head and plan.architecture != "deepseek2" else None
    if name == "rope.scaling.type":
        # Phi 3 reads its tables whatever the type.
        return None if value == "none" or plan.architecture == "phi3" else "none"
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return value * (10 if "epsilon" in name else 4 if "beta" in name else 2 if "base" in name else 1.25)
    if isinstance(value, list) and len(set(value)) > 1:
        return [*value[1:], value[0]]
    if isinstance(value, int):
        steps = {"attention.sliding_window": -1, "rope.scaling.original_context_length": 7 * value}
        return 3 - value if name == "classifier.pooling_type" else value + steps.get(name, 1)
    return None


def test_every_entry_is_needed(row: str, model: tuple[Folder, np.ndarray], tmp_path: Path) -> None:
    """What is wrong is refused, or another thing comes out."""
    folder, wanted = model
    plan = plan_model(folder)
    path = tmp_path / "m.gguf"
    write(plan, "F32", folder.stream, path)
    unnoticed, tried = [], 0
    for key, value in plan.metadata.items():
        other = wrong(key.partition(".")[2], value, plan) if key.startswith(f"{plan.architecture}.") else None
        if other is None:
            continue
        tried += 1
        try:
            if isinstance(other, list | str):
                found = difference(replace(plan, metadata={**plan.metadata, key: other}), folder, wanted, path)
                write(plan, "F32", folder.stream, path)
            else:
                found = compared(path, plan, wanted, {key: other})[0]
        except EngineRefuses:
            continue
        if found <= 10 * TOLERANCE:
            unnoticed.append(f"{key} {value} {other}: {found:.0e}")
    ARCHITECTURES.note(row, "entries", str(tried))
    assert not unnoticed


def test_a_broken_configuration_is_an_error_that_helps(row: str, model: tuple[Folder, np.ndarray]) -> None:
    check_configs(model[0], zlib.crc32(row.encode()), 20)


@pytest.mark.long(name="levels", sample=8)
def test_every_level_loads_and_answers(row: str, model: tuple[Folder, np.ndarray], tmp_path: Path) -> None:
    """Rows of other than whole blocks fall back on other types, as llama.cpp has it, so all of them are tried."""
    folder, wanted = model
    plan = plan_model(folder)
    base = row.split(",")[0]
    if base != row and f"{plan.architecture}.expert_count" not in plan.metadata:
        ARCHITECTURES.note(row, "levels", f"as {base}")
        pytest.skip("levels do not depend on the variant")
    # In rows this short many levels come to the same types; each mixture is tried once.
    mixtures = {frozenset(assign(plan, level).items()): level for level in LEVELS}
    for level in mixtures.values():
        write(plan, level, folder.stream, tmp_path / "m.gguf")
        with Engine(tmp_path / "m.gguf") as engine:
            found = engine.vectors(IDS[:8]) if "embedding" in plan.capabilities else engine.generate(IDS[:8], 4)
        assert np.isfinite(found).all(), level
        assert found.std() > wanted.std() / 4, level
    rows = sorted({tensor.columns for tensor in plan.tensors if quantizable(tensor)})
    ARCHITECTURES.note(row, "levels", f"{len(LEVELS)} ({len(mixtures)}; {' '.join(map(str, rows))})")


@pytest.mark.long(name="levels", sample=1)
def test_every_level_of_wide_experts_has_its_own_type(tmp_path: Path) -> None:
    """In blocks of 256 values nothing falls back: every type is written, stacked eight times, and answers."""
    row = ZOO["qwen3moe"]
    wide = {"hidden_size": 256, "moe_intermediate_size": 256, "num_experts": 8, "num_hidden_layers": 1}
    path = make(row._replace(config={**row.config, **wide}), tmp_path / "wide")
    folder = Folder(path)
    plan, wanted = plan_model(folder), reference(path, row, IDS)
    seen = set()
    for name, level in LEVELS.items():
        types = assign(plan, name)
        experts = {type for tensor, type in types.items() if "_exps." in tensor}
        assert level.base in experts, name
        seen |= experts
        write(plan, name, folder.stream, tmp_path / "m.gguf")
        with Engine(tmp_path / "m.gguf") as engine:
            found = engine.generate(IDS[:8], 4)
        assert np.isfinite(found).all() and found.std() > wanted.std() / 4, name
    assert {level.base for level in LEVELS.values()} <= seen
    ARCHITECTURES.note("qwen3moe, wide experts", "levels", f"{len(LEVELS)} (all types; 256)")


def test_every_family_has_a_row() -> None:
    architectures = {family.architecture for family in FAMILIES.values()}
    assert architectures <= {name.split(",")[0] for name in ZOO.keys() | SKETCHES.keys()}


def test_the_page_of_models_has_every_row() -> None:
    missing = ZOO.keys() - ARCHITECTURES.read().keys()
    assert not missing, "run `python -m tests.quant.matrix`, with `-k` for some rows alone"


def test_the_page_of_models_keeps_its_text() -> None:
    text = ARCHITECTURES.page.read_text()
    assert ARCHITECTURES.text(text, ARCHITECTURES.read(text)) == text
