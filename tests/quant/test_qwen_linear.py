"""Qwen 3.5 as it is published: experts in one tensor for each layer, and layers that guess at further tokens."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np

from quant.convert.planning import plan_model
from quant.plan import NEXT_TOKEN_LAYERS
from tests.converting import write
from tests.quant.llama_converter import File
from tests.quant.support import Folder, safetensors
from tests.quant.zoo import sketched
from tests.quant.zoo.recurrent import QWEN_LINEAR_EXPERTS

EXPERTS, LAYERS = 12, 4
Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]


def read(data: bytes) -> Tensors:
    """The tensors of a safetensors file."""
    (size,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    return {
        name: (each["dtype"], tuple(each["shape"]), body[slice(*each["data_offsets"])]) for name, each in header.items()
    }


def together(tensors: Tensors) -> Tensors:
    """The same model with the experts of a layer in two tensors."""
    found = {name: each for name, each in tensors.items() if ".experts." not in name}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}.mlp.experts."
        parts = {
            kind: [tensors[f"{at}{number}.{kind}_proj.weight"][2] for number in range(EXPERTS)]
            for kind in ("gate", "up", "down")
        }
        pairs = b"".join(gate + up for gate, up in zip(parts["gate"], parts["up"], strict=True))
        found[f"{at}gate_up_proj"] = ("F32", (EXPERTS, 128, 128), pairs)
        found[f"{at}down_proj"] = ("F32", (EXPERTS, 128, 64), b"".join(parts["down"]))
    return found


def test_experts_in_one_tensor_are_the_same_model_and_guessing_layers_stay_behind(tmp_path: Path) -> None:
    sketch = sketched.Sketch("Qwen3_5MoeForCausalLM", {**QWEN_LINEAR_EXPERTS, "intermediate_size": None})
    single = Folder(sketched.make(sketch, tmp_path / "model"))
    tensors = together(read(single.contents["model.safetensors"]))
    tensors["mtp.fc.weight"] = ("F32", (128, 256), bytes(4 * 128 * 256))
    joined = single.with_file("model.safetensors", safetensors(tensors))
    assert plan_model(joined).left_out == {NEXT_TOKEN_LAYERS: 4 * 128 * 256}
    for folder, name in ((single, "single"), (joined, "joined")):
        write(plan_model(folder), "F32", folder.stream, tmp_path / f"{name}.gguf")
    one, other = (File.read(tmp_path / f"{name}.gguf").tensors for name in ("single", "joined"))
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)
