"""llama.cpp's own answer for eight architectures against our formulas; children that die."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest

from benchmarks import shapes
from quant.convert.planning import sketch_model
from quant.gguf.header import read_file
from quant.levels.recipes import assign
from quant.types import QuantType, Tensor
from runtime.llama.library import PACKAGE_VERSION
from runtime.machine import fit
from runtime.machine.inspection import Examine, Examined, Refused, Reserve, ask, ask_reserved
from runtime.messages import CacheConfig
from tests.quant.support import Folder
from tests.quant.zoo.mixtures import INDEXED
from tests.quant.zoo.own_code import SKETCHES
from tests.quant.zoo.sketched import Sketch, make
from tests.server.test_rerank import write_ranker


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_the_cache_by_formula_is_llama_cpps(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.gguf"
    length = shapes.write(path, shapes.SHAPES[name]())
    assert path.stat().st_size == length
    header = read_file(path)
    said = ask_reserved(header.metadata, header.tensors, CacheConfig(4096, 4, "Q8_0" if name == "grouped" else "F16"))
    assert said is not None
    model_size = fit.ModelSize.of(header.metadata)
    formula = fit.memory(model_size, length, said.cache_config)
    assert formula.cache == pytest.approx(said.cache, abs=1 << 14)  # it says hundredths of a MiB
    exact = fit.memory(model_size.with_reserved(said), length, said.cache_config)
    assert exact.cache == said.cache
    assert formula.total == pytest.approx(exact.total, rel=0.05)
    longer = msgspec.structs.replace(said.cache_config, context=8192)
    assert fit.memory(model_size.with_reserved(said), length, longer) == fit.memory(model_size, length, longer)


# Caches that are none of plain keys and values, by their architecture.
_CACHES = {
    "deepseek32": Sketch("DeepseekV32ForCausalLM", INDEXED),
    "glm-dsa": Sketch("GlmMoeDsaForCausalLM", {**INDEXED, "indexer_types": ["full", "shared", "full"]}),
    **{
        name.split(",")[0]: SKETCHES[name]
        for name in ("nanbeige", "minimax-01, m1", "openelm", "deci, blocks", "bailingmoe3")
    },
    "hrm_text": Sketch("HrmTextForCausalLM", {"num_key_value_heads": None, "head_dim": 32, "rms_norm_eps": 1e-6}),
}


@pytest.mark.parametrize("name", _CACHES)
def test_the_cache_of_a_sketched_model_by_formula_is_llama_cpps(tmp_path: Path, name: str) -> None:
    plan = sketch_model(Folder(make(_CACHES[name], tmp_path / "model")))
    assert plan.architecture == name
    said = ask_reserved(plan.metadata, plan.at(assign(plan, "F16")), CacheConfig(512, 2))
    assert said is not None
    formula = fit.memory(fit.ModelSize.of(plan.metadata), 0, said.cache_config)
    assert formula.cache == pytest.approx(said.cache, abs=1 << 14)


def test_an_encoder_is_measured_by_what_its_source_says(tmp_path: Path) -> None:
    plan = sketch_model(Folder(write_ranker(tmp_path / "ranker")))
    said = ask_reserved(plan.metadata, plan.at(assign(plan, "Q8_0")), CacheConfig(128, 2))
    assert said is not None
    assert said.cache == 0 < said.compute


def test_repacked_weights_are_matrices_of_eights_of_rows() -> None:
    made = [
        Tensor("token_embd.weight", (256, 64), QuantType.Q4_K),
        Tensor("output.weight", (256, 64), QuantType.Q4_K),
        Tensor("blk.0.ffn_up.weight", (256, 63), QuantType.Q4_K),
        Tensor("blk.0.ffn_gate_exps.weight", (256, 8, 4), QuantType.Q4_K),
        Tensor("blk.0.ffn_down.weight", (256, 8), QuantType.Q6_K),
    ]
    assert fit.repacked(made, ("Q4_K",)) == 64 * 144 + 32 * 144
    assert fit.repacked(made, ()) == 0
    need = fit.Need(weights=100, cache=10, compute=5, repacked=60)
    assert (need.total, need.anonymous) == (115, 75)


def test_llama_cpp_describes_itself() -> None:
    examined = ask(Examine(), 30)
    assert isinstance(examined, Examined)
    assert examined.package == PACKAGE_VERSION
    cpu = next(device for device in examined.devices if device.kind == "cpu")
    assert 0 < cpu.free <= cpu.total and not cpu.shared


def test_what_cannot_be_asked_is_refused_and_not_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    assert isinstance(ask(Reserve(str(path), CacheConfig(512, 1)), 30), Refused)
    assert isinstance(ask(Examine(), 0.001), Refused)
    assert (
        ask_reserved({"general.architecture": "alien"}, [Tensor("x", (32, 1), QuantType.F32)], CacheConfig(512, 1))
        is None
    )
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert ask(Examine(), 5) == Refused("the process that was asked died")
