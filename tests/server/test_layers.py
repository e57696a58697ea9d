"""`lm verify --oracle`: each layer against the original's, with the original's input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quant.convert.planning import plan_model
from quant.gguf.header import read_file
from quant.types import QuantType, Tensor
from server.verify.comparing import compare
from server.verify.layers import Comparison, Original, Stage, Values, stage_of
from server.verify.running import run
from tests.converting import write
from tests.quant.support import Folder

Files = tuple[Path, Path]
TOKENS = np.random.default_rng(1).normal(0, 1, (5, 4, 16)).astype(np.float32)
TYPES = [("token_embd.weight", "Q8_0"), ("blk.0.ffn_up.weight", "Q8_0"), ("blk.1.ffn_up.weight", "Q4_K")]


def compared(folder: Path, hurt: int) -> dict[str, Stage]:
    """Three layers that compute what they ought to, but for the one of the number `hurt`."""
    original = Original(folder)
    names = ["embd", "l_out-0", "l_out-1", "l_out-2", "result_norm"]
    for name, values in zip(names, TOKENS, strict=True):
        original.keep(stage_of(name) or "", values)
    comparison = Comparison(original)
    for way in (comparison.free, comparison.led):
        wrong: Values | float = 0.0
        for number, (name, values) in enumerate(zip(names, TOKENS, strict=True)):
            wrong = wrong + 1.0 * (number - 1 == hurt)
            if way(name, values + wrong) is not None:
                wrong = 0.0  # the original's values went on
    comparison.head(TOKENS[0], TOKENS[0] + 3)
    tensors = [Tensor(name, (256, 4), QuantType.by_name(kind)) for name, kind in TYPES]
    return {each.name: each for each in comparison.stages(4, tensors)}


@pytest.mark.parametrize("hurt", [0, 1, 2])
def test_only_the_layer_that_is_wrong_is_told_though_all_later_ones_drift(tmp_path: Path, hurt: int) -> None:
    stages = compared(tmp_path, hurt)
    assert [name for name, each in stages.items() if not each.right] == [f"layer {hurt}"]
    for number in range(hurt, 3):
        assert (stages[f"layer {number}"].drift or 0) > 0.1
    assert compare(TOKENS[0], TOKENS[0], "F32", list(stages.values()))["first"] == f"layer {hurt}"


def test_a_layer_may_be_as_far_off_as_its_own_types_round_and_what_has_no_counterpart_says_so(tmp_path: Path) -> None:
    stages = compared(tmp_path, 9)
    bounds = [stages[f"layer {number}"].bound for number in range(3)]
    assert stages["embeddings"].bound == stages["head"].bound == bounds[0] < 0.1 < bounds[1] < 1
    assert bounds[2] == 1e-3, "it has no matrix"
    report = compare(TOKENS[0], TOKENS[0], "F32", list(stages.values()))
    assert report["unseen"] == ["layer 3"] and report["right"] and report["first"] is None


def test_values_that_are_no_numbers_are_wrong_at_every_level(tmp_path: Path) -> None:
    original = Original(tmp_path)
    original.keep("layer 0", TOKENS[0])
    comparison = Comparison(original)
    for way in (comparison.free, comparison.led):
        way("l_out-0", np.full_like(TOKENS[0], np.nan))
    (stage,) = [each for each in comparison.stages(1, []) if each.name == "layer 0"]
    assert not stage.right


@pytest.fixture(scope="module", params=["llama", "gemma3", "nemotron_h_moe", "lfm2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The folder of a small random model, and its file at F32."""
    from tests.quant.zoo import ZOO
    from tests.quant.zoo.making import make

    place = tmp_path_factory.mktemp("model")
    made = make(ZOO[request.param], place / "original")
    folder = Folder(made)
    write(plan_model(folder), "F32", folder.stream, place / "model.gguf")
    return made, place / "model.gguf"


@pytest.mark.oracle
def test_each_layer_of_an_unquantized_model_is_that_of_transformers(model: Files) -> None:
    folder, file = model
    theirs, ours, stages = run(file, folder)
    assert all(each.own is not None and each.own <= 1e-3 for each in stages), stages
    assert all(each.drift is not None and each.drift <= 1e-3 for each in stages[:-1]), stages
    assert compare(theirs, ours, "F32", stages)["right"]


@pytest.mark.oracle
@pytest.mark.parametrize("which", ["second", "last"])
def test_a_layer_that_was_hurt_in_the_file_is_named_and_no_other(model: Files, which: str, tmp_path: Path) -> None:
    folder, file = model
    header = read_file(file)
    number = (
        1 if which == "second" else max(int(each.name.split(".")[1]) for each in header.tensors if "blk" in each.name)
    )
    names = [each for each in header.tensors if each.name.startswith(f"blk.{number}.") and len(each.shape) > 1]
    tensor = max(names, key=lambda each: each.nbytes)
    data = bytearray(file.read_bytes())
    start = header.data_offset + tensor.offset
    weights = np.frombuffer(data, np.float32, tensor.nbytes // 4, start)
    weights[:] = np.roll(weights, 7)
    hurt = tmp_path / "hurt.gguf"
    hurt.write_bytes(data)
    theirs, ours, stages = run(hurt, folder)
    assert [each.name for each in stages if not each.right] == [f"layer {number}"]
    assert f"from layer {number} on" in compare(theirs, ours, "F32", stages)["verdict"]


@pytest.mark.oracle
@pytest.mark.parametrize("level", ["Q8_0", "Q4_K_M", "Q2_K"])
def test_the_rounding_of_a_level_is_no_fault(model: Files, level: str, tmp_path: Path) -> None:
    folder, _ = model
    source = Folder(folder)
    write(plan_model(source), level, source.stream, tmp_path / "rounded.gguf")
    _, _, stages = run(tmp_path / "rounded.gguf", folder)
    assert all(each.right for each in stages), stages
    assert max(each.own or 0 for each in stages) > 1e-3
