"""Surveys of a model's parts: what experts add as transformers has it; skipped layers are as good as none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.convert.gguf.source import plan_gguf
from quant.convert.planning import plan_model
from quant.cuts.experts import Experts
from quant.cuts.wish import Cut
from runtime.errors import BadRequest
from runtime.meter import passages
from tests.converting import write
from tests.publishing import make as publish
from tests.quant.support import Folder
from tests.quant.test_cuts import written

pytestmark = pytest.mark.slow
WINDOW, COUNT = 64, 3
READING: dict[str, Any] = {"windows": COUNT, "window": WINDOW, "threads": 1, "tell": lambda done, total: None}


def mixture(folder: Path, row: str) -> Path:
    """A small mixture as its authors would publish it."""
    from tests.quant.zoo import ZOO
    from tests.quant.zoo.making import make

    return make(ZOO[row], folder)


def converted(folder: Path) -> Path:
    file = folder / "gguf" / "model.gguf"
    file.parent.mkdir(exist_ok=True)
    write(plan_model(Folder(folder)), "F32", Folder(folder).stream, file)
    return file


def windows(file: Path) -> list[np.ndarray]:
    from runtime.meter.windows import WindowReader

    return list(WindowReader(file, WINDOW, 1).windows(passages.own("calibration"), COUNT).values())


def causal(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    )


@pytest.mark.oracle
def test_experts_add_what_transformers_says_that_they_add(tmp_path: Path) -> None:
    import torch

    from runtime.meter.surveying import survey_experts

    folder = mixture(tmp_path / "model", "qwen3moe")
    file, model = converted(folder), causal(folder)
    found = survey_experts(file, passages.own("calibration"), **READING)
    sums, counts = np.zeros((3, 12)), np.zeros((3, 12), int)

    def note(layer: int) -> Any:
        def hook(module: Any, given: tuple[Any, ...], _: Any) -> None:
            x = given[0].reshape(-1, given[0].shape[-1])
            logits = x @ module.gate.weight.T
            weights, chosen = logits.softmax(-1).topk(3)
            weights = weights / weights.sum(-1, keepdim=True)
            experts = module.experts
            for expert in range(12):
                tokens, slots = (chosen == expert).nonzero(as_tuple=True)
                gate, up = (x[tokens] @ experts.gate_up_proj[expert].T).chunk(2, -1)
                out = (torch.nn.functional.silu(gate) * up) @ experts.down_proj[expert].T
                sums[layer, expert] += (out.norm(dim=-1) * weights[tokens, slots]).sum().item()
                counts[layer, expert] += len(tokens)

        return hook

    for number, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_hook(note(number))
    with torch.no_grad():
        for tokens in windows(file):
            model(torch.tensor(tokens[None].astype(np.int64)))
    assert found.steady and found.layers == [0, 1, 2]
    assert abs(np.array(found.counts) - counts).max() <= 1, "llama.cpp rounds keys and values"
    np.testing.assert_allclose(np.array(found.scores), sums / counts, rtol=0.02)


def reduced(folder: Path, kept: dict[int, list[int]], target: Path) -> Path:
    """The same surgery on the published weights, for transformers."""
    import json

    from safetensors.torch import load_file, save_file

    config = json.loads((folder / "config.json").read_text())
    count = next(config[key] for key in _COUNTS if key in config)
    tensors: dict[str, Any] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    made: dict[str, Any] = {}
    for name, tensor in tensors.items():
        words = name.split(".")
        layer = int(words[2]) if words[1] == "layers" else -1
        if layer in kept and "experts" in words and words[words.index("experts") + 1].isdecimal():
            place = words.index("experts") + 1
            if int(words[place]) in kept[layer]:
                number = kept[layer].index(int(words[place]))
                made[".".join([*words[:place], str(number), *words[place + 1 :]])] = tensor
        elif layer in kept and tensor.shape[:1] == (count,) and "gate" in words:
            made[name] = tensor[kept[layer]].contiguous()
        else:
            made[name] = tensor
    target.mkdir()
    (target / "config.json").write_text(
        json.dumps(config | {key: len(next(iter(kept.values()))) for key in _COUNTS if key in config})
    )
    save_file(made, target / "model.safetensors", metadata={"format": "pt"})
    return target


_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")


def logits_of(model: Any, ids: Sequence[int]) -> np.ndarray:
    import torch

    with torch.no_grad():
        found: np.ndarray = model(torch.tensor([list(ids)]), use_cache=False).logits[0].double().numpy()
    return found


@pytest.mark.oracle
@pytest.mark.parametrize("row", ["qwen3moe", "qwen2moe", "llama, mixtral", "deepseek2, v3"])
def test_a_mixture_with_half_of_its_experts_computes_what_transformers_does(row: str, tmp_path: Path) -> None:
    from runtime.meter.surveying import survey_experts
    from tests.quant.engine import Engine, divergence

    folder = mixture(tmp_path / "model", row)
    file = converted(folder)
    found = survey_experts(file, passages.own("calibration"), **READING)
    experts = Experts(plan_gguf(Folder(file.parent), finished=True))
    by_layer = [dict(zip(found.layers, each, strict=True)) for each in (found.scores, found.counts)]
    kept = experts.chosen(experts.kept_of(0.5), *by_layer)
    small = written(file, Cut(experts=kept, read="a text"), tmp_path / "cut.gguf")
    ids = list(range(40, 120))
    with Engine(small) as engine:
        assert divergence(logits_of(causal(reduced(folder, kept, tmp_path / "small")), ids), engine.logits(ids)) <= 1e-6


@pytest.mark.oracle
def test_experts_without_work_are_found_and_nobody_misses_them(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from runtime.meter.surveying import survey_experts
    from tests.quant.engine import Engine, divergence

    folder = mixture(tmp_path / "model", "deepseek2, v3")
    planted = {1: [0, 6, 9, 15], 2: [3, 4, 8, 13]}  # one in each group of four
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            if name.endswith("e_score_correction_bias"):
                tensor[planted[int(name.split(".")[2])]] = -1.0
        save_file(tensors, path, metadata={"format": "pt"})
    file = converted(folder)
    found = survey_experts(file, passages.own("calibration"), **READING)
    idle = {
        layer: [each for each, count in enumerate(counts) if not count]
        for layer, counts in zip(found.layers, found.counts, strict=True)
    }
    assert idle == planted
    experts = Experts(plan_gguf(Folder(file.parent), finished=True))
    scores, counts = (dict(zip(found.layers, each, strict=True)) for each in (found.scores, found.counts))
    assert experts.idle(counts) == 4
    kept = experts.chosen(12, scores, counts)
    assert kept == {layer: [each for each in range(16) if each not in planted[layer]] for layer in planted}
    small = written(file, Cut(experts=kept, read="a text"), tmp_path / "cut.gguf")
    ids = windows(file)[0].tolist()
    with Engine(file) as whole, Engine(small) as less:
        assert divergence(whole.logits(ids), less.logits(ids)) <= 1e-6


def test_a_skipped_layer_is_as_good_as_none(tmp_path: Path) -> None:
    from runtime.meter.kept import compare, record
    from runtime.meter.skipping import LayerWatcher
    from runtime.meter.windows import WindowReader

    file = publish(tmp_path / "demo" / "demo.gguf", "F32")
    watcher = LayerWatcher(6, 256, WINDOW)
    reader = WindowReader(file, WINDOW, 1, watcher)
    (tokens, *_) = reader.windows(passages.own("calibration"), 1).values()
    whole = record(tokens, reader.logits(tokens))
    changes = watcher.changes
    assert (changes[1:5] > 0).all() and changes[0] == changes[5] == 0, "the last layer computes fewer rows"
    for gone in ([2], [1, 4]):
        watcher.skip(gone)
        skipped = record(tokens, reader.logits(tokens), 0.0)
        watcher.check(1)
        other = WindowReader(written(file, Cut(layers=tuple(gone)), tmp_path / f"{gone[0]}.gguf"), WINDOW, 1)
        assert compare(skipped, other.logits(tokens)).divergence.max() < 1e-6
        assert compare(whole, other.logits(tokens)).divergence.mean() > 1e-2


def test_the_layer_that_costs_least_is_chosen_and_the_first_and_last_stay(tmp_path: Path) -> None:
    from runtime.meter.surveying import survey_layers

    file = publish(tmp_path / "demo.gguf", "Q8_0")
    told: list[int] = []
    reading = {**READING, "tell": lambda done, total: told.append(total - done)}
    (first, second) = survey_layers(file, passages.own("calibration"), count=2, **reading)
    assert sorted(first.layers) == [2, 3, 4] and first.layer not in second.layers
    assert min(first.divergences) == first.divergences[first.layers.index(first.layer)] < min(second.divergences)
    assert told == sorted(told, reverse=True) and told[-1] == 0
    with pytest.raises(BadRequest, match="too few"):
        survey_layers(file, passages.own("calibration"), count=4, **READING)


def test_a_model_without_experts_is_refused(tmp_path: Path) -> None:
    from runtime.meter.surveying import survey_experts

    with pytest.raises(BadRequest, match="no experts"):
        survey_experts(publish(tmp_path / "demo.gguf", "Q8_0"), passages.own("calibration"), **READING)
