"""The scale of a whole NVFP4 matrix as a tensor of its own: llama.cpp multiplies by it, and an export has it back."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quant.convert.planning import plan_model
from quant.convert.returning.plan import plan_return
from quant.convert.returning.values import values
from quant.errors import BadValues
from quant.gguf.architectures import SCALED
from quant.gguf.header import read_file
from quant.types import QuantType
from tests.converting import write
from tests.quant import layouts
from tests.quant import test_packed_floats as floats
from tests.quant.engine import Engine
from tests.quant.layouts import FAMILIES, LAYOUTS, models
from tests.quant.packed_sources import Packer, Source, Tensors, raw, written
from tests.quant.test_packed import changed
from tests.quant.zoo.decoders import GEMMA_4
from tests.quant.zoo.recurrent import NEMOTRON_H
from tests.quant.zoo.settings import MINISTRAL
from tests.quant.zoo.sketched import PREDICTING, Sketch

DIVIDED, TIMES = (
    next(each for each in LAYOUTS if each.title == f"{maker}, NVFP4") for maker in ("compressed-tensors", "modelopt")
)
IDS = np.random.default_rng(3).integers(3, 4096, 40).tolist()
_WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 64}
_HYBRID = {**NEMOTRON_H, "layers_block_type": ["mamba", "attention", "mlp"], "layer_norm_epsilon": 1e-2}
SKETCHES = {
    **{name: FAMILIES[name] for name in ("llama", "qwen3moe", "qwen3next")},
    **{name: PREDICTING[f"{name}, heads"] for name in ("qwen35", "qwen35moe", "hy_v3")},
    "qwen3": Sketch("Qwen3ForCausalLM", _WIDE),
    "mistral3": Sketch("Ministral3ForCausalLM", {**_WIDE, **MINISTRAL}),
    "gemma4": Sketch("Gemma4ForCausalLM", {**_WIDE, **GEMMA_4, "tie_word_embeddings": True}, bare=()),
    "nemotron_h": Sketch("NemotronHForCausalLM", _HYBRID),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SKETCHES)
def test_llama_multiplies_by_the_scales(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The codes are turned into numbers here, so that no activation is rounded."""
    monkeypatch.setitem(FAMILIES, name, SKETCHES[name])
    packed, whole, _ = models(DIVIDED, name)
    plan = plan_model(packed)
    scaled = {each.name.split(".")[-2] for each in plan.tensors if each.name.endswith(".scale")}
    assert scaled and scaled <= SCALED[plan.architecture]
    loose = (
        replace(each, packing=replace(each.packing, exact=None)) if each.packing else each  # type: ignore[type-var]
        for each in plan.tensors
    )
    write(replace(plan, tensors=tuple(loose)), "F32", packed.stream, tmp_path / "m.gguf")
    write(plan_model(whole), "F32", whole.stream, tmp_path / "whole.gguf")
    logits = []
    for file in ("m.gguf", "whole.gguf"):
        with Engine(tmp_path / file) as engine:
            logits.append(engine.logits(IDS))
    found, wanted = logits
    assert np.abs(found - wanted).max() <= 1e-4 * wanted.std()


@pytest.mark.parametrize("layout", [DIVIDED, TIMES], ids=["divides", "multiplies"])
def test_an_export_has_the_scales_in_its_numbers(layout: layouts.Layout, tmp_path: Path) -> None:
    packed, whole, names = models(layout, "qwen3moe")
    path = tmp_path / "m.gguf"
    write(plan_model(packed), "Q8_0", packed.stream, path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        header = read_file(path)
        back = plan_return(packed, header)
        read = lambda at, count: os.pread(descriptor, count, at)  # noqa: E731
        found = {each.name: np.concatenate(list(values(each, header, read))) for each in back.tensors}
    finally:
        os.close(descriptor)
    plan = plan_model(whole)
    for tensor in plan.tensors:
        if tensor.source in names and not tensor.parts:
            wanted = np.frombuffer(whole.read(tensor.shard, tensor.offset, tensor.size), "<f4")
            np.testing.assert_allclose(found[tensor.source], wanted, 1e-6)


def nvfp4(p: Packer) -> Tensors:
    return floats.nvfp4(p, "weight_global_scale", divides=True)


def test_a_smaller_level_keeps_the_scales_apart(tmp_path: Path) -> None:
    source = Source(floats.compressed("nvfp4-pack-quantized"), nvfp4, bits=4, symmetric=True)
    _, found = written(source.folder(), "Q2_K", tmp_path / "m.gguf")
    name = "blk.0.ffn_up.weight"
    assert found[name][0] is QuantType.Q2_K
    type, scale = found["blk.0.ffn_up.scale"]
    assert (type, scale.shape) == (QuantType.F32, (1,))
    assert scale[0] == 16.0


@pytest.mark.parametrize("wrong", [0.0, np.nan])
def test_a_scale_that_divides_by_nothing_is_refused(wrong: float, tmp_path: Path) -> None:
    source = Source(floats.compressed("nvfp4-pack-quantized"), nvfp4, bits=4, symmetric=True)
    tensors = changed(source, "weight_global_scale", lambda _: raw(np.array([wrong], np.float32)))
    with pytest.raises(BadValues, match="NaN or infinity"):
        written(source.folder(tensors), "Q8_0", tmp_path / "m.gguf")
