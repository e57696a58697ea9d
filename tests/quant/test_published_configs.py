"""Configs as their makers published them: planned in full size, and as a small model the logits of transformers."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest

from quant.convert.families.table import FAMILIES
from quant.convert.planning import plan_model, sketch_model
from quant.errors import UnsupportedModel
from quant.levels.recipes import assign
from quant.plan import ModelPlan
from runtime.machine.inspection import Reserved, ask_model
from runtime.messages import CacheConfig
from tests.converting import write
from tests.quant.published import PUBLISHED, row_of, small, usual
from tests.quant.support import Folder
from tests.quant.zoo.sketched import Sketch, shapes

pytestmark = [pytest.mark.oracle, pytest.mark.slow, pytest.mark.filterwarnings("default")]
# Clauses on whatever differs from transformers.
SAID = {"gpt-oss-20b": "rounds the ends"}
# Clauses of refusals.
REFUSED = {"phi-4-multimodal-instruct": "adapters for images and speech"}
# Models with code of their own, by what their scales are beside Llama's.
OWN_CODE: dict[str, dict[str, float]] = {
    "internlm2_5-7b-chat": {},
    "minicpm-2b-sft-bf16": {
        "embedding_scale": 12.0,
        "residual_scale": 1.4 / 40**0.5,
        "attention.scale": 64**-0.5,
        "logit_scale": 9.0,
    },
}
CONVERTED = [name for name in PUBLISHED if name not in REFUSED]
# One of each class, which llama.cpp is asked about.
ASKED = {PUBLISHED[name]["config"]["architectures"][0]: name for name in CONVERTED}.values()


class Header(Folder):
    """A model whose file of weights ends behind its header, and says that it does not."""

    def size(self, name: str) -> int:
        data = self.contents[name]
        if not name.endswith(".safetensors"):
            return len(data)
        header = json.loads(data[8:])
        return len(data) + max(entry["data_offsets"][1] for entry in header.values())


def saved(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the tensors that the model's class saves; of no class, those of the family's table."""
    import torch
    import transformers
    from transformers.core_model_loading import revert_weight_conversion

    name = config["architectures"][0]
    if not hasattr(transformers, name):
        found = shapes(Sketch(name, config))
        return {key: shape for key, shape in found.items() if key != "lm_head.weight" or not FAMILIES[name].tied}
    settings = {key: value for key, value in usual(config).items() if key not in ("architectures", "model_type")}
    with torch.device("meta"):
        made = getattr(transformers, name)
        made = made(made.config_class(**settings))
        state = revert_weight_conversion(made, made.state_dict())
    tied = made.config.tie_word_embeddings
    return {key: tuple(value.shape) for key, value in state.items() if not tied or key != "lm_head.weight"}


def header(config: dict[str, Any], found: dict[str, tuple[int, ...]]) -> Header:
    """A folder with these settings, and with tensors of these names and shapes, BF16."""
    entries, offset = {}, 0
    for name, shape in found.items():
        size = 2 * math.prod(shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(entries).encode()
    return Header(
        contents={
            "config.json": json.dumps(config).encode(),
            "model.safetensors": struct.pack("<Q", len(raw)) + raw,
        }
    )


@pytest.mark.parametrize("name", CONVERTED)
def test_a_published_config_is_planned(name: str) -> None:
    config = PUBLISHED[name]["config"]
    found = saved(config)
    plan = sketch_model(header(config, found))
    layers = usual(config)["num_hidden_layers"]
    assert plan.metadata[f"{plan.architecture}.block_count"] == layers
    assert {tensor.layer for tensor in plan.tensors} >= set(range(layers))
    if config["architectures"][0].endswith("ForCausalLM"):
        # Each weight is placed once; an encoder leaves its head behind.
        placed = sum(tensor.elements for tensor in plan.tensors if tensor.shard and not tensor.again)
        assert placed == sum(map(math.prod, found.values()))
    for key, value in OWN_CODE.get(name, {}).items():
        assert plan.metadata[f"{plan.architecture}.{key}"] == pytest.approx(value)
    if name in ASKED:
        answer = ask_model(plan.metadata, plan.at(assign(plan, "Q8_0")), CacheConfig(512, 1))
        assert isinstance(answer, Reserved), answer
    said = SAID.get(name, "")
    assert bool(plan.remarks) is bool(said) and said in "".join(plan.remarks)


@pytest.mark.parametrize("name", REFUSED)
def test_a_published_config_is_refused_by_its_reason(name: str) -> None:
    for config in (PUBLISHED[name]["config"], {**PUBLISHED[name]["config"], "architectures": None}):
        with pytest.raises(UnsupportedModel, match=REFUSED[name]):
            sketch_model(header(config, {}))


@pytest.fixture(scope="module", params=[name for name in CONVERTED if name not in OWN_CODE])
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


def test_a_small_model_of_published_settings_is_that_of_transformers(name: str, tmp_path: Path) -> None:
    from tests.quant.test_zoo import IDS, TOLERANCE, compared
    from tests.quant.zoo.making import make
    from tests.quant.zoo.reference import reference

    facts, path = PUBLISHED[name], tmp_path / "model"
    settings = small(usual(facts["config"]))
    kept = {key: value for key, value in settings.items() if key not in ("architectures", "model_type")}
    row = row_of(facts["config"])
    made = row._replace(config={**dict.fromkeys(row.settings()), **kept})
    make(made, path)
    newest = plan_model(Folder(path)) if name not in SAID else None
    (path / "config.json").write_text(json.dumps(usual(settings, back=True)))
    folder = Folder(path)
    # The class itself knows its own names alone.
    (path / "config.json").write_text(json.dumps(settings))
    plan = plan_model(folder)
    assert newest is None or comparable(newest) == comparable(plan)
    if name in SAID:
        assert SAID[name] in "".join(plan.remarks)
        return
    write(plan, "F32", folder.stream, tmp_path / "m.gguf")
    # Six layers of Gemma 3, with random weights, round by more than the bound of the zoo.
    assert compared(tmp_path / "m.gguf", plan, reference(path, made, IDS))[0] <= 2 * TOLERANCE


def comparable(plan: ModelPlan) -> dict[str, Any]:
    """The entries of the model, and the values of tensors that are computed."""
    tables = {tensor.name: tensor.values for tensor in plan.tensors if tensor.values}
    return {key: value for key, value in plan.metadata.items() if not key.startswith("general.")} | tables
