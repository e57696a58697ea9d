"""Rotary settings in every form that files have: the logits of transformers, or a refusal that names the scaling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quant.convert.config import ModelConfig
from quant.convert.families import rotary
from quant.convert.planning import FAMILIES, plan_model
from quant.errors import UnsupportedModel
from tests.converting import write
from tests.quant.support import Folder
from tests.quant.zoo import ZOO
from tests.quant.zoo.making import make
from tests.quant.zoo.settings import LLAMA_3_ROPE, YARN_ROPE

LINEAR = {"rope_type": "linear", "factor": 4.0}
LONG = {"rope_type": "longrope", "long_factor": [2.0] * 16, "short_factor": [1.5] * 16}
PER_LAYER = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e6},
    "sliding_attention": {**LINEAR, "rope_theta": 1e4},
}


@pytest.mark.parametrize(
    ("architecture", "scaling"),
    [
        *((name, LLAMA_3_ROPE) for name in ("qwen2", "qwen3", "smollm3", "gemma2", "gemma3", "glm4", "gptneox")),
        *((name, LLAMA_3_ROPE) for name in ("stablelm", "starcoder2", "cohere2", "deepseek2", "gpt-oss")),
        *((name, LONG) for name in ("qwen2", "qwen3", "smollm3", "gemma3", "arcee", "exaone4", "command-r")),
        *((name, YARN_ROPE) for name in ("gemma3", "gemma-embedding", "modern-bert", "nomic-bert", "gemma4")),
        ("qwen2", {**YARN_ROPE, "truncate": False}),
    ],
)
def test_a_scaling_that_is_not_applied_is_refused(architecture: str, scaling: dict[str, Any]) -> None:
    for key in ("rope_scaling", "rope_parameters"):
        for name in ("type", "rope_type"):
            given = {**scaling, name: scaling["rope_type"]}
            with pytest.raises(UnsupportedModel, match=f"`{given[name]}`|truncate"):
                rotary.check(ModelConfig("config.json", {key: given}), architecture)


@pytest.mark.parametrize("architecture", ["gemma3", "gemma2", "olmo2", "cohere2"])
def test_windows_that_rotate_in_another_way_are_refused(architecture: str) -> None:
    with pytest.raises(UnsupportedModel, match="window"):
        rotary.check(ModelConfig("config.json", {"rope_parameters": PER_LAYER}), architecture)


def test_a_base_for_windows_is_read_in_every_form() -> None:
    forms: list[dict[str, Any]] = [
        {"rope_theta": 1e6, "rope_local_base_freq": 3e3, "rope_scaling": None},
        {"rope_theta": 1e6, "rope_local_base_freq": 3e3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {"rope_parameters": {"sliding_attention": {"rope_theta": 3e3}, "full_attention": {"rope_theta": 1e6}}},
    ]
    for form in forms:
        config = ModelConfig("config.json", form)
        assert (rotary.base(config), rotary.local_base(config)) == (1e6, 3e3)
    assert rotary.local_base(ModelConfig("config.json", {"rope_theta": 1e6})) == 1e4


def test_whatever_reads_tables_gets_them() -> None:
    readers = {name for names in rotary.READERS.values() for name in names}
    for family in FAMILIES.values():
        assert (family.computed is rotary.tables) is (family.architecture in readers), family.classes


# A row of the zoo, and the rotary settings as files had them before transformers 5.
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("gemma3", {"rope_theta": 1e6, "rope_local_base_freq": 1e3, "rope_scaling": None}),
    "gemma3, linear": ("gemma3", {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": LINEAR}),
    "gemma-embedding": ("gemma-embedding", {"rope_theta": 1e6, "rope_local_base_freq": 1e3, "rope_scaling": None}),
    "gemma2, yarn": ("gemma2", {"rope_theta": 1e4, "rope_scaling": YARN_ROPE}),
    "command-r, yarn": ("command-r", {"rope_theta": 1e4, "rope_scaling": YARN_ROPE}),
    "cohere2, yarn": ("cohere2", {"rope_theta": 1e4, "rope_scaling": YARN_ROPE}),
    "cohere2, linear": ("cohere2", {"rope_theta": 1e4, "rope_scaling": LINEAR}),
    "qwen2, llama3": ("qwen2", {"rope_theta": 1e4, "rope_scaling": LLAMA_3_ROPE}),
    "deepseek2, yarn alone": ("deepseek2, v3", {"rope_theta": 1e4, "rope_scaling": YARN_ROPE}),
    "granite 4, llama3": ("granitehybrid, attention alone", {"rope_theta": 1e4, "rope_scaling": LLAMA_3_ROPE}),
    "exaone4, llama3": ("exaone4", {"rope_theta": 1e4, "rope_scaling": LLAMA_3_ROPE}),
}
REFUSED = ("qwen2, llama3", "deepseek2, yarn alone")


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_give_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    from tests.quant.test_zoo import IDS, TOLERANCE, compared
    from tests.quant.zoo.reference import reference

    row, settings = PUBLISHED[name]
    path = make(ZOO[row], tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    del config["rope_parameters"]
    (path / "config.json").write_text(json.dumps(config | settings))
    folder = Folder(path)
    if name in REFUSED:
        with pytest.raises(UnsupportedModel, match=r"llama3|YaRN"):
            plan_model(folder)
        return
    plan = plan_model(folder)
    write(plan, "F32", folder.stream, tmp_path / "m.gguf")
    assert compared(tmp_path / "m.gguf", plan, reference(path, ZOO[row], IDS))[0] <= TOLERANCE
