"""Models that a setting or their weights make another than a row of the zoo, and the logits of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from quant.convert.planning import plan_model, sketch_model
from quant.gguf.architectures import OUTPUT_NEEDED
from quant.levels.recipes import assign
from runtime.machine.inspection import Refused, Reserved, ask_model
from runtime.messages import CacheConfig
from tests.quant.support import Folder
from tests.quant.test_zoo import check_logits
from tests.quant.zoo import ZOO
from tests.quant.zoo.making import make
from tests.quant.zoo.row import Row

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("default")]
TIED = {"tie_word_embeddings": True}
# Rows of the zoo with other settings.
SETTINGS: dict[str, dict[str, Any]] = {
    "gptneox": {"attention_bias": False},
    "starcoder2": {"use_bias": False},
    "mamba": {"use_conv_bias": False},
    "mamba2": {"use_conv_bias": False},
    "falcon-h1": {"mamba_conv_bias": False},
    "jamba": {"mamba_conv_bias": False},
    "bert, xlm-roberta": {"pad_token_id": 0, "bos_token_id": 1},
}


def changed(name: str, **settings: Any) -> Row:
    return ZOO[name]._replace(config={**ZOO[name].config, **settings})


@pytest.mark.parametrize("name", SETTINGS)
def test_what_a_setting_takes_away_is_no_damage(name: str, tmp_path: Path) -> None:
    row = changed(name, **SETTINGS[name])
    check_logits(make(row, tmp_path / "model"), row, tmp_path / "m.gguf")


# Classes of transformers that have an output of their own whatever `tie_word_embeddings` says, or refuse it.
NEVER_TIED = {"dbrx", "kimi-linear", "muse-glimmer"}


@pytest.mark.parametrize("name", sorted(name for name in ZOO if name in OUTPUT_NEEDED and name not in NEVER_TIED))
def test_an_output_that_is_the_embedding_is_written_again(name: str, tmp_path: Path) -> None:
    row = changed(name, **TIED)
    path = make(row, tmp_path / "model")
    check_logits(path, row, tmp_path / "m.gguf")
    tied, sizes = plan_model(Folder(path)), {}
    for tensor in tied.tensors:
        sizes[tensor.name] = tensor.size
    assert (sizes["output.weight"], tied.tied) == (0, False)
    assert tied.source_bytes == sum(size for size in sizes.values())


@pytest.mark.parametrize("name", sorted({name.split(",")[0]: name for name in reversed(ZOO)}.values()))
def test_the_engine_needs_an_output_where_the_table_says_so(name: str, tmp_path: Path) -> None:
    plan = sketch_model(Folder(make(ZOO[name], tmp_path)))
    without = [tensor for tensor in plan.at(assign(plan, "Q8_0")) if tensor.name != "output.weight"]
    if len(without) == len(plan.tensors):
        pytest.skip("it has none")
    answer = ask_model(plan.metadata, without, CacheConfig(512, 1))
    if plan.architecture in OUTPUT_NEEDED:
        assert answer == Refused("tensor 'output.weight' not found", unloadable=True)
    else:
        assert isinstance(answer, Reserved), answer


@pytest.mark.parametrize("name", ["llama", "phi2"])
def test_an_output_of_its_own_counts_whatever_the_settings_say(name: str, tmp_path: Path) -> None:
    path = make(ZOO[name], tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | TIED))
    check_logits(path, ZOO[name], tmp_path / "m.gguf")


@pytest.mark.parametrize("name", ["llama, tied", "qwen2, tied"])
def test_an_output_alone_is_the_embedding(name: str, tmp_path: Path) -> None:
    path = make(ZOO[name], tmp_path / "model")
    (path / "model.safetensors.index.json").unlink()
    weights: dict[str, np.ndarray] = {}
    for shard in sorted(path.glob("*.safetensors")):
        weights |= load_file(shard)
        shard.unlink()
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    check_logits(path, ZOO[name], tmp_path / "m.gguf")


@pytest.mark.parametrize("name", ["smollm3", "ernie4_5", "ernie4_5-moe"])
def test_settings_that_transformers_4_left_out_are_those_of_the_class(name: str, tmp_path: Path) -> None:
    row = changed(name, **TIED)
    path = make(row, tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    (path / "config.json").write_text(json.dumps(config))
    check_logits(path, row, tmp_path / "m.gguf")
