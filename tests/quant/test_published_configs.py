"""Configs as their makers published them: planned in full size, and as a small model the logits of transformers."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from quant.convert.chat import read_defaults
from quant.convert.config import ModelConfig
from quant.convert.planning import plan_model, sketch_model
from quant.plan import ModelPlan
from tests.converting import write
from tests.quant.published import PUBLISHED, row_of, small
from tests.quant.support import Folder

pytestmark = [pytest.mark.oracle, pytest.mark.slow, pytest.mark.filterwarnings("default")]
# Clauses on whatever differs from transformers.
SAID = {"gpt-oss-20b": "rounds the ends"}
# The class keeps all experts of a layer in one tensor, and saves them under other names.
_STACKED = ("num_experts", "num_local_experts", "n_routed_experts")


class Header(Folder):
    """A model whose file of weights ends behind its header, and says that it does not."""

    def size(self, name: str) -> int:
        data = self.contents[name]
        if not name.endswith(".safetensors"):
            return len(data)
        header = json.loads(data[8:])
        return len(data) + max(entry["data_offsets"][1] for entry in header.values())


def header(config: dict[str, Any]) -> Header:
    """The names and shapes that the model's class has, BF16."""
    import torch
    import transformers

    settings = {key: value for key, value in config.items() if key not in ("architectures", "model_type")}
    with torch.device("meta"):
        made = getattr(transformers, config["architectures"][0])
        state = made(made.config_class(**settings)).state_dict()
    entries, offset = {}, 0
    for name, value in state.items():
        if name == "lm_head.weight" and made.config_class(**settings).tie_word_embeddings:
            continue
        size = 2 * value.numel()
        entries[name] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [offset, offset + size]}
        offset += size
    raw = json.dumps(entries).encode()
    return Header(
        contents={
            "config.json": json.dumps(config).encode(),
            "model.safetensors": struct.pack("<Q", len(raw)) + raw,
        }
    )


@pytest.mark.parametrize(
    "name", [name for name, facts in PUBLISHED.items() if not facts["config"].keys() & set(_STACKED)]
)
def test_a_published_config_is_planned(name: str) -> None:
    config = PUBLISHED[name]["config"]
    plan = sketch_model(header(config))
    assert plan.metadata[f"{plan.architecture}.block_count"] == config["num_hidden_layers"]
    assert {tensor.layer for tensor in plan.tensors} >= set(range(config["num_hidden_layers"]))
    said = SAID.get(name, "")
    assert bool(plan.remarks) is bool(said) and said in "".join(plan.remarks)


@pytest.fixture(scope="module", params=PUBLISHED)
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


def test_a_small_model_of_published_settings_is_that_of_transformers(name: str, tmp_path: Path) -> None:
    from tests.quant.test_zoo import IDS, TOLERANCE, compared
    from tests.quant.zoo.making import make
    from tests.quant.zoo.reference import reference

    facts, path = PUBLISHED[name], tmp_path / "model"
    settings = small(facts["config"])
    kept = {key: value for key, value in settings.items() if key not in ("architectures", "model_type")}
    row = row_of(facts["config"])
    made = row._replace(config={**dict.fromkeys(row.settings()), **kept})
    make(made, path)
    newest = plan_model(Folder(path)) if name not in SAID else None
    (path / "config.json").write_text(json.dumps(settings))
    folder = Folder(path)
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


def test_settings_for_sampling_are_those_of_the_makers(name: str) -> None:
    found = read_defaults(ModelConfig("generation_config.json", PUBLISHED[name]["generation"]))
    wanted = {
        {"repetition_penalty": "repeat_penalty"}.get(key, key): value
        for key, value in PUBLISHED[name]["generation"].items()
    }
    assert found == wanted
