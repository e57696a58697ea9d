"""Rotary settings in every form that files have: the logits of transformers, or a refusal that names the scaling."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.convert import keys
from quant.convert.base import ROUNDED
from quant.convert.config import ModelConfig
from quant.convert.families import rotary
from quant.convert.gguf.source import plan_gguf
from quant.convert.planning import FAMILIES, plan_model
from quant.errors import MalformedFile, UnsupportedModel
from quant.gguf.writer import encode_header, layout
from quant.types import QuantType, Tensor
from runtime.machine.fit import ModelSize
from runtime.messages import CacheConfig
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


@pytest.mark.oracle
@pytest.mark.parametrize(
    "row", ["granitehybrid, no rotation", "gpt2", "bloom", "mamba2", "nemotron_h", "jamba", "bert"]
)
def test_a_scaling_is_passed_over_where_nothing_is_rotated(row: str, tmp_path: Path) -> None:
    folder = Folder(make(ZOO[row], tmp_path / "model"))
    wanted = plan_model(folder)
    for scaling in (LLAMA_3_ROPE, LONG, {**YARN_ROPE, "truncate": False}, {"rope_type": "unheard-of"}):
        given = folder.json("config.json").get("rope_parameters") or {}
        assert plan_model(folder.change("config.json", rope_parameters={**given, **scaling})) == wanted


@pytest.mark.parametrize("kind", [None, "nope"])
@pytest.mark.parametrize("experts", [0, 4])
def test_granite_4_of_attention_alone_has_positions_or_is_refused(kind: str | None, experts: int) -> None:
    settings = {"architectures": ["GraniteMoeHybridForCausalLM"], "num_hidden_layers": 2, "num_local_experts": experts}
    settings |= {"layer_types": ["attention"] * 2, "position_embedding_type": kind}
    with pytest.raises(UnsupportedModel, match="none has positions"):
        plan_model(Folder(contents={"config.json": json.dumps(settings).encode()}))


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
        config = keys.filled(ModelConfig("config.json", form), "Gemma3ForCausalLM")
        assert (rotary.base(config), rotary.local_base(config)) == (1e6, 3e3)
    alone = keys.filled(ModelConfig("config.json", {"rope_theta": 2e6}), "Gemma3ForCausalLM")
    assert (rotary.base(alone), rotary.local_base(alone)) == (2e6, 1e4)
    # In windows of Olmo 3 the base is the class's, whatever `rope_theta` is.
    olmo = keys.filled(ModelConfig("config.json", {"rope_theta": 7.0, "rope_scaling": YARN_ROPE}), "Olmo3ForCausalLM")
    assert (rotary.base(olmo), rotary.local_base(olmo)) == (7.0, 5e5)


@pytest.mark.parametrize(
    "scaling", [{**LINEAR, "factor": 1.0}, {**YARN_ROPE, "factor": 1}, {**LLAMA_3_ROPE, "factor": 1.0}]
)
def test_a_scaling_by_one_is_none(scaling: dict[str, Any]) -> None:
    config = ModelConfig("config.json", {"rope_theta": 1e6, "rope_scaling": scaling})
    for architecture in ("modern-bert", "gemma4", "qwen2"):
        rotary.check(config, architecture)
    assert rotary.describe(config) == {"rope.freq_base": 1e6}


@pytest.mark.parametrize("value", [True, 3, 1e-30, "x", ["x"], [["a", "b"]], 0, "", []])
def test_settings_that_are_no_object_are_an_error_that_helps(value: Any) -> None:
    for name, family in FAMILIES.items():
        for given in (
            *({"rope_scaling": value}, {"rope_parameters": value}),
            *({"rope_parameters": {kind: value}} for kind in PER_LAYER),
            *({"rope_parameters": {**PER_LAYER, kind: value}} for kind in PER_LAYER),
        ):
            with pytest.raises((MalformedFile, UnsupportedModel)) as caught:
                rotary.check(keys.filled(ModelConfig("config.json", given), name), family.architecture)
            assert caught.value.hint, (name, given)


def test_the_rounded_ramp_of_gpt_oss_is_said(tmp_path: Path) -> None:
    scaling = {**YARN_ROPE, "truncate": False}
    config = ModelConfig("config.json", {"rope_scaling": scaling})
    rotary.check(config, "gpt-oss")
    assert rotary.remarks(config) == (ROUNDED,)
    path = tmp_path / "m.gguf"
    for kind, said in (("yarn", (ROUNDED,)), ("linear", ())):
        metadata = {
            **{"general.architecture": "gpt-oss", "gpt-oss.block_count": 1, "gpt-oss.embedding_length": 32},
            **{"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": list("abcdefgh")},
            "gpt-oss.rope.scaling.type": kind,
        }
        tensors = layout([Tensor("token_embd.weight", (32, 8), QuantType.F32)])
        path.write_bytes(encode_header(metadata, tensors) + bytes(tensors[0].nbytes))
        assert plan_gguf(Folder(contents={"m.gguf": path.read_bytes()})).remarks == said


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("architecture", ["phi3", "llama"])
def test_short_texts_are_rotated_as_in_transformers_unless_a_larger_context_is_asked_for(
    architecture: str, tmp_path: Path
) -> None:
    from tests.quant.engine import Engine
    from tests.quant.test_zoo import IDS, TOLERANCE
    from tests.quant.zoo.reference import reference

    row = ZOO["phi3, long rope"]
    sizes = {"original_max_position_embeddings": 256, "max_position_embeddings": 4096}
    row = row._replace(config={**row.config, **sizes}, kind=architecture.capitalize())
    path = make(row, tmp_path / "model")
    folder = Folder(path)
    plan, wanted = plan_model(folder), reference(path, row, IDS)
    size = ModelSize.of_plan(plan)
    write(plan, "F32", folder.stream, tmp_path / "m.gguf")
    assert ModelSize.of_plan(plan_gguf(Folder(contents={"m.gguf": (tmp_path / "m.gguf").read_bytes()}))) == size

    def difference(asked: int | None) -> float:
        context = size.cap_context(CacheConfig.wanted(asked, 1)).context
        with Engine(tmp_path / "m.gguf") as engine:
            return float(np.abs(engine.logits(IDS, context=context) - wanted).max() / wanted.std())

    assert difference(None) <= TOLERANCE
    assert difference(512) > 100 * TOLERANCE


def test_a_context_that_nobody_chose_has_the_factors_for_short_texts() -> None:
    size = replace(ModelSize.of({"general.architecture": "phi3", "phi3.context_length": 131_072}), short_context=4096)
    assert size.cap_context(CacheConfig.wanted(None, 8)) == CacheConfig(4096, 8)
    assert size.cap_context(CacheConfig.wanted(8192, 8)) == CacheConfig(8192, 8)
    assert size.cap_context(CacheConfig.wanted(1 << 20, 8)) == CacheConfig(131_072, 8)
    one_set = replace(size, short_context=0)
    assert one_set.cap_context(CacheConfig.wanted(None, 8)) == CacheConfig(8192, 8)
    assert (one_set.context_reason(8192), replace(size, trained_context=4096).context_reason(4096)) == ("", "")


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
    "olmo3, yarn": ("olmo2, windows", {"rope_theta": 5e5, "rope_scaling": YARN_ROPE}),
    "olmo3, another base": ("olmo2, windows", {"rope_theta": 1e4, "rope_scaling": None}),
    "gemma3, flat": ("gemma3", {"rope_theta": 1e6, "rope_parameters": {**YARN_ROPE, "rope_theta": 1e4}}),
    "modern-bert, published": ("modern-bert", {"global_rope_theta": 1e5, "local_rope_theta": 1e3}),
    "granite 4, llama3": ("granitehybrid, attention alone", {"rope_theta": 1e4, "rope_scaling": LLAMA_3_ROPE}),
    "exaone4, llama3": ("exaone4", {"rope_theta": 1e4, "rope_scaling": LLAMA_3_ROPE}),
}
REFUSED = ("qwen2, llama3", "deepseek2, yarn alone", "olmo3, another base", "gemma3, flat")


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_give_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    from tests.quant.test_zoo import check_logits

    row, settings = PUBLISHED[name]
    path = make(ZOO[row], tmp_path / "model")
    config = json.loads((path / "config.json").read_text())
    del config["rope_parameters"]
    (path / "config.json").write_text(json.dumps(config | settings))
    if name in REFUSED:
        with pytest.raises(UnsupportedModel, match=r"llama3|YaRN|another base|kinds of layers"):
            plan_model(Folder(path))
        return
    check_logits(path, ZOO[row], tmp_path / "m.gguf")
