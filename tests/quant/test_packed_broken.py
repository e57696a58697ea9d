"""Quantized models that are broken: one sentence for each, which names what is wrong, and no file."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.convert.planning import plan_model
from quant.errors import BadValues, MalformedFile, QuantError
from tests.quant import test_packed as integers
from tests.quant.packed_sources import Source, Tensors, raw, written
from tests.quant.support import bf16

pytestmark = pytest.mark.slow
SYMMETRIC = {"quantization_config": integers.scheme("pack-quantized", 4, True)}
# Layout: the configuration, who packs it, whether zeros are the middle, and the names of codes and scales.
LAYOUTS: dict[str, tuple[dict[str, Any], Any, bool, str, str]] = {
    "gptq": (integers.GPTQ, integers.gptq, True, "qweight", "scales"),
    "awq": (integers.AWQ, integers.awq, False, "qweight", "scales"),
    "compressed": (SYMMETRIC, integers.compressed, True, "weight_packed", "weight_scale"),
    "mlx": (integers.MLX, integers.mlx, True, "weight", "scales"),
}
MATRIX = "model.layers.0.mlp.up_proj."


@cache
def source(layout: str) -> Source:
    config, pack, symmetric, *_ = LAYOUTS[layout]
    return Source(config, pack, bits=4, symmetric=symmetric)


def with_scales(layout: str, change: Any) -> Tensors:
    """The tensors with other scales for one matrix: an array of float32, which keeps the type of the source."""
    tensors, name = source(layout).tensors, MATRIX + LAYOUTS[layout][4]
    dtype, shape, data = tensors[name]
    if dtype == "BF16":
        scales = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        scales = np.frombuffer(data, "<f2").astype(np.float32)
    new = change(scales.reshape(shape).copy())
    stored = raw(bf16(new)) if dtype == "BF16" else raw(new.astype(np.float16))
    return tensors | {name: stored}


def poked(value: float) -> Any:
    def change(scales: np.ndarray) -> np.ndarray:
        scales.reshape(-1)[3] = value
        return scales

    return change


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_scale_that_is_no_number_is_refused(layout: str, value: float, tmp_path: Path) -> None:
    tensors = with_scales(layout, poked(value))
    with pytest.raises(BadValues, match="a scale is no number") as error:
        written(source(layout).folder(tensors), "Q8_0", tmp_path / "m.gguf")
    assert error.value.hint


def test_a_scale_that_float16_cannot_hold_is_told_and_not_clipped(tmp_path: Path) -> None:
    tensors = with_scales("compressed", poked(1e6))
    with pytest.raises(BadValues, match=r"a scale of .* is beyond float16, which Q4_0 has"):
        written(source("compressed").folder(tensors), "Q8_0", tmp_path / "m.gguf")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("change", ["half", "five", "missing", "integers"])
def test_scales_of_other_shapes_or_types_are_refused(layout: str, change: str) -> None:
    along = 0 if layout in ("gptq", "awq") else 1
    name = MATRIX + LAYOUTS[layout][4]
    tensors = dict(source(layout).tensors)
    if change == "half":
        tensors = with_scales(layout, lambda scales: np.array_split(scales, 2, along)[0])
    elif change == "five":  # eight groups there are, and five do not divide the columns
        tensors = with_scales(layout, lambda scales: scales[:5] if along == 0 else np.ascontiguousarray(scales[:, :5]))
    elif change == "missing":
        del tensors[name]
    else:
        tensors[name] = raw(np.zeros(tensors[name][1], np.int32))
    with pytest.raises(MalformedFile, match=r"do not fit|config\.json") as error:
        plan_model(source(layout).folder(tensors))
    assert "up_proj" in str(error.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_codes_of_another_shape_are_refused(layout: str) -> None:
    name = MATRIX + LAYOUTS[layout][3]
    dtype, (rows, columns), data = source(layout).tensors[name]
    cut = dtype, (rows // 2, columns), data[: len(data) // 2]
    with pytest.raises(MalformedFile, match=r"do not fit|config\.json"):
        plan_model(source(layout).folder(source(layout).tensors | {name: cut}))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_matrix_that_is_there_twice_is_refused(layout: str) -> None:
    if layout == "mlx":
        pytest.skip("its codes have the name of the matrix")
    whole = raw(bf16(np.zeros((512, 256), np.float32)))
    with pytest.raises(MalformedFile, match="there as it is, and packed"):
        plan_model(source(layout).folder(source(layout).tensors | {MATRIX + "weight": whole}))


def test_a_list_of_matrices_to_ignore_does_not_hide_one_that_is_missing() -> None:
    tensors = {name: each for name, each in source("compressed").tensors.items() if not name.startswith(MATRIX)}
    config = json.loads(json.dumps(SYMMETRIC["quantization_config"]))
    config["ignore"] = [MATRIX.removesuffix("."), "model.layers.9.mlp.up_proj"]
    with pytest.raises(MalformedFile, match=r"the weights lack .*layers\.0\.mlp\.up_proj"):
        plan_model(source("compressed").folder(tensors, quantization_config=config))


@pytest.mark.parametrize("config", [[], "gptq", 4, {}, {"quant_method": None}, {"quant_method": {}}], ids=ascii)
def test_a_configuration_that_is_none_is_an_error_of_one_sentence(config: Any) -> None:
    with pytest.raises(QuantError) as error:
        plan_model(source("gptq").folder(quantization_config=config))
    assert "\n" not in str(error.value)
