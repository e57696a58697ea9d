"""Ternary models: their codes are in the file, as TQ2_0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant import dequantize
from quant.convert.planning import plan_model
from quant.errors import BadValues, MalformedFile, UnsupportedModel
from quant.kernels.blocks import unpack
from quant.types import QuantType
from tests.quant.packed_sources import RNG, Packer, Source, Tensors, raw, turned, written
from tests.quant.support import bf16
from tests.quant.test_packed_floats import told

pytestmark = pytest.mark.slow


def of_bitnet(**more: Any) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": "bitnet", "linear_class": "autobitlinear", **more}}


def bitnet(p: Packer, inverse: bool = False) -> Tensors:
    p.codes %= 3
    quarters = p.codes.reshape(4, -1, p.columns)
    stored = bf16(np.array([RNG.random() / 16 + 1 / 64], np.float32))
    scale = (stored.astype(np.uint32) << 16).view(np.float32)[0]
    told(p, (p.codes.astype(np.float32) - 1) * (1 / scale if inverse else scale))
    words = quarters[0] | quarters[1] << 2 | quarters[2] << 4 | quarters[3] << 6
    return {"weight": raw(words), "weight_scale": raw(stored)}


@pytest.mark.parametrize("inverse", [False, True])
def test_ternary_codes_are_taken_over_as_they_are(inverse: bool, tmp_path: Path) -> None:
    config = of_bitnet(**({"linear_class": "bitlinear"} if inverse else {}))
    source = Source(config, lambda p: bitnet(p, inverse), bits=2, symmetric=True)
    _, found = written(source.folder(), "Q4_K_M", tmp_path / "m.gguf")
    for name, packer in source.packers.items():
        type, blocks = found[name]
        assert type is QuantType.TQ2_0
        levels = unpack(type, blocks.reshape(-1, type.block_bytes)).levels.reshape(packer.codes.shape)
        np.testing.assert_array_equal(levels, turned(name, packer.codes))
        values = turned(name, packer.told)  # type: ignore[attr-defined]
        np.testing.assert_allclose(dequantize(blocks, type, packer.columns), values, rtol=1e-3)


def test_the_smallest_ternary_type_has_the_same_codes(tmp_path: Path) -> None:
    source = Source(of_bitnet(), bitnet, bits=2, symmetric=True)
    _, found = written(source.folder(), "TQ1_0", tmp_path / "m.gguf")
    for name, packer in source.packers.items():
        type, blocks = found[name]
        assert type is QuantType.TQ1_0
        values = turned(name, packer.told)  # type: ignore[attr-defined]
        np.testing.assert_allclose(dequantize(blocks, type, packer.columns), values, rtol=1e-3)


def test_what_is_no_ternary_model_is_refused(tmp_path: Path) -> None:
    source = Source(of_bitnet(), bitnet, bits=2, symmetric=True)
    for more, words in (({"use_rms_norm": True}, "use_rms_norm"), ({"linear_class": "other"}, "linear_class")):
        with pytest.raises(UnsupportedModel, match=words):
            plan_model(source.folder(**of_bitnet(**more)))
    name = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(MalformedFile, match="do not fit"):
        plan_model(source.folder({key: each for key, each in source.tensors.items() if key != name + "_scale"}))
    dtype, shape, data = source.tensors[name]
    wrong = source.tensors | {name: (dtype, shape, b"\x03" + data[1:])}
    with pytest.raises(BadValues, match="ternary code is 3"):
        written(source.folder(wrong), "Q4_K_M", tmp_path / "m.gguf")
    nothing = source.tensors | {name + "_scale": raw(np.array([np.nan], np.float32))}
    with pytest.raises(BadValues, match="no number"):
        written(source.folder(nothing), "Q4_K_M", tmp_path / "m.gguf")
