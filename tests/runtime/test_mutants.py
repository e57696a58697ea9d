"""Files that others have made, or damaged: what passes our check loads, or fails by an error; no worker dies of it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from quant.convert.planning import plan_model
from quant.errors import QuantError
from quant.types import QuantType
from runtime.errors import EngineError
from runtime.machine.choosing import Chooser, this_machine
from runtime.machine.inspection import Refused, Tried, Try, ask
from runtime.machine.rule import Wish
from runtime.messages import CacheConfig
from tests.publishing import make
from tests.quant.support import Folder
from tests.runtime.mutants import Mutant, mutants, with_entry

SEED = 14
SECONDS = 120


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("original") / "m.gguf", "Q4_K_M")


def passes(folder: Path) -> bool:
    """Whether a pull would download the file in `folder`."""
    try:
        Chooser(plan_model(Folder(folder)), this_machine(folder.parent)).advise(Wish(CacheConfig(2048, 1)))
    except (QuantError, EngineError):
        return False
    return True


def crash(path: Path) -> str:
    """How the process ended that loaded the file and read a text with it; "" where it did not end by that."""
    answer = ask(Try(str(path), 1, 1 << 40), SECONDS)
    assert isinstance(answer, Tried | Refused)
    return answer.reason if isinstance(answer, Refused) and answer.crashed else ""


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(25, marks=pytest.mark.slow),
        pytest.param(400, marks=[pytest.mark.long(name="mutants"), pytest.mark.timeout(3600)]),
    ],
)
def test_no_file_that_passes_kills_the_process_that_loads_it(tmp_path: Path, original: Path, count: int) -> None:
    folder = tmp_path / "mutant"
    folder.mkdir()
    passed, crashes = 0, []
    for mutant in random.Random(SEED).sample(list(mutants(original)), count):
        mutant.write(folder / "m.gguf", original)
        if passes(folder):
            passed += 1
            if reason := crash(folder / "m.gguf"):
                crashes.append(f"{mutant.name}: {reason}")
    assert not crashes, "\n".join(crashes)
    assert passed > count // 10


def typed(mutant: Mutant, name: str, number: int) -> Mutant:
    """With tensor `name` of the type of this number."""
    changed = [
        type(tensor)(tensor.name, tensor.shape, QuantType.by_id(number), 0) if tensor.name == name else tensor
        for tensor in mutant.tensors
    ]
    return Mutant(name, mutant.metadata, mutant.kinds, tuple(changed))


def entry(key: str, value: object, kind: str = "") -> object:
    return lambda mutant: with_entry(mutant, key, value, kind)


def renamed(mutant: Mutant, architecture: str) -> Mutant:
    def of(entries: dict[str, object]) -> dict[str, object]:
        return {key.replace("llama.", f"{architecture}.", 1): value for key, value in entries.items()}

    metadata = of(mutant.metadata) | {"general.architecture": architecture}
    return Mutant(architecture, metadata, of(mutant.kinds), mutant.tensors)


EPSILON, WEIGHT, NORM = "llama.attention.layer_norm_rms_epsilon", "blk.0.attn_q.weight", "blk.0.attn_norm.weight"
KILLERS = {
    "epsilon nan": entry(EPSILON, float("nan"), "f32"),
    "epsilon negative": entry(EPSILON, -1.0, "f32"),
    "experts": entry("llama.expert_count", 8),
    "next tokens": entry("llama.nextn_predict_layers", (1 << 32) - 1),
    "no vocabulary": entry("tokenizer.ggml.model", "no_vocab"),
    "pooling": entry("llama.pooling_type", 5),
    "no first token": entry("tokenizer.ggml.model", "gemma4"),
    "diffusion": lambda mutant: renamed(mutant, "llada"),
    **{f"weights {number}": lambda m, number=number: typed(m, WEIGHT, number) for number in (9, 15, 25, 27, 28)},
    **{f"norms {number}": lambda m, number=number: typed(m, NORM, number) for number in (1, 8, 14)},
}


@pytest.mark.parametrize("name", KILLERS)
def test_what_would_kill_a_worker_is_refused_before_the_download(tmp_path: Path, original: Path, name: str) -> None:
    KILLERS[name](Mutant.none(original)).write(tmp_path / "m.gguf", original)
    assert not passes(tmp_path)


def test_a_file_that_breaks_the_process_is_called_unloadable(tmp_path: Path, original: Path) -> None:
    typed(Mutant.none(original), WEIGHT, 24).write(tmp_path / "m.gguf", original)
    answer = ask(Try(str(tmp_path / "m.gguf"), 1, 1 << 40), SECONDS)
    assert answer == Refused("it crashes on this file (SIGSEGV)", unloadable=True, crashed=True)
