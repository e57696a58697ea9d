"""What taking codes over costs: the probabilities of the file beside those of the numbers of its source.

The demo's weights are rounded to codes here, as the layouts have them. Both models are run as float32, so that nothing
but the rounding of scales and minima to float16 is measured: no rounding of activations is among it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from quant.convert.planning import plan_model
from quant.types import QuantType
from tests.converting import write
from tests.quant import test_packed as integers
from tests.quant.engine import Engine, divergence
from tests.quant.packed_sources import GROUP, Packer, Tensors, raw
from tests.quant.support import DEMO, ROOT, Folder, safetensors

PROSE = (ROOT / "tests" / "prose.txt").read_text()
Tuned = Callable[[Packer, np.ndarray], None]


def middle(p: Packer, x: np.ndarray) -> None:
    """Codes whose 8 is zero, scales in BF16, which float16 rounds where they are small."""
    groups = x.reshape(len(x), -1, GROUP)
    p.scales = np.maximum(np.abs(groups).max(-1) / 7, 1e-4)
    p.codes = np.clip(np.round(groups / p.scales[..., None]) + 8, 0, 15).astype(np.uint8).reshape(x.shape)


def least(p: Packer, x: np.ndarray) -> None:
    """Codes whose 0 is the least weight of a group."""
    groups = x.reshape(len(x), -1, GROUP)
    low = groups.min(-1)
    p.scales = np.maximum((groups.max(-1) - low) / 15, 1e-4).astype(np.float16)
    p.bias = low.astype(np.float16)
    scales, bias = p.scales[..., None].astype(np.float32), p.bias[..., None]
    p.codes = np.clip(np.round((groups - bias) / scales), 0, 15).astype(np.uint8).reshape(x.shape)


def zeroed(p: Packer, x: np.ndarray) -> None:
    """Codes with a whole zero for each group."""
    least(p, x)
    p.zeros = np.clip(np.round(-p.bias.astype(np.float32) / p.scales.astype(np.float32)), 1, 15).astype(int)
    groups, scales = x.reshape(len(x), -1, GROUP), p.scales[..., None].astype(np.float32)
    p.codes = np.clip(np.round(groups / scales) + p.zeros[..., None], 0, 15).astype(np.uint8).reshape(x.shape)


def models(config: dict[str, Any], pack: Callable[[Packer], Tensors], tune: Tuned) -> tuple[Folder, Folder]:
    """The demo with packed layers, and with the numbers that these stand for."""
    data = (DEMO / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    packed: Tensors = {}
    whole: Tensors = {}
    for name, told in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + place for place in told["data_offsets"])
        part = data[begin:end]
        packed[name] = whole[name] = told["dtype"], tuple(told["shape"]), part
        if ".layers." in name and len(told["shape"]) == 2:
            x = (np.frombuffer(part, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(told["shape"])
            packer = Packer(*x.shape, 4, True)
            tune(packer, x)
            del packed[name]
            packed |= {name.removesuffix("weight") + key: each for key, each in pack(packer).items()}
            whole[name] = raw((packer.affine if pack is integers.mlx else packer.values).astype(np.float32))
    contents = {path.name: path.read_bytes() for path in DEMO.iterdir() if path.suffix == ".json"}

    def folder(tensors: Tensors, more: dict[str, Any]) -> Folder:
        told = json.dumps({**json.loads(contents["config.json"]), **more}).encode()
        return Folder(contents={**contents, "config.json": told, "model.safetensors": safetensors(tensors)})

    return folder(packed, config), folder(whole, {})


def as_float(taken: Path, other: Path) -> int:
    """Put the numbers of the blocks of `taken` into the float32 file `other`; how many matrices had blocks."""
    places = {tensor.name: int(tensor.data_offset) for tensor in gguf.GGUFReader(other).tensors}
    count = 0
    with other.open("rb+") as file:
        for tensor in gguf.GGUFReader(taken).tensors:
            if QuantType.by_id(int(tensor.tensor_type)) in (QuantType.Q4_0, QuantType.Q4_1):
                file.seek(places[tensor.name])
                file.write(gguf.quants.dequantize(np.array(tensor.data), tensor.tensor_type).astype("<f4").tobytes())
                count += 1
    return count


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "pack", "tune", "most"),
    [
        ({"quantization_config": integers.scheme("pack-quantized", 4, True)}, integers.compressed, middle, 1e-6),
        (integers.of_gptq(sym=False), integers.gptq, zeroed, 1e-5),
        (integers.MLX, integers.mlx, least, 1e-5),
    ],
    ids=["compressed-tensors", "gptq-asymmetric", "mlx"],
)
def test_a_file_that_was_taken_over_has_the_probabilities_of_its_source(
    config: dict[str, Any], pack: Callable[[Packer], Tensors], tune: Tuned, most: float, tmp_path: Path
) -> None:
    packed, whole = models(config, pack, tune)
    taken, wanted, found = (tmp_path / f"{name}.gguf" for name in ("taken", "wanted", "found"))
    write(plan_model(packed), "F32", packed.stream, taken)
    for path in (wanted, found):
        write(plan_model(whole), "F32", whole.stream, path)
    assert as_float(taken, found) == sum("layers" in name and "proj" in name for name in _names(whole))
    logits = []
    for path in (wanted, found):
        with Engine(path) as engine:
            logits.append(engine.logits(engine.tokenize(PROSE, special=True)[:256]))
    assert divergence(*logits) <= most


def _names(folder: Folder) -> list[str]:
    data = folder.contents["model.safetensors"]
    (size,) = struct.unpack("<Q", data[:8])
    return list(json.loads(data[8 : 8 + size]))
