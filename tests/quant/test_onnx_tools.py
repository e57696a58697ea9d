"""Models as ONNX Runtime GenAI's own builder writes them: the same codes, and the logits that ONNX Runtime computes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.convert.planning import plan_model
from quant.kernels.blocks import unpack
from quant.types import QuantType
from tests.converting import write
from tests.quant.engine import Engine, divergence
from tests.quant.packed_sources import written
from tests.quant.support import Folder
from tests.quant.zoo import ZOO
from tests.quant.zoo.making import make
from tests.quant.zoo.row import Row

onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
genai = pytest.importorskip("onnxruntime_genai", reason="the extra `onnx` is not installed")
pytestmark = [pytest.mark.oracle, pytest.mark.slow, pytest.mark.filterwarnings("default")]

IDS = np.random.default_rng(1).integers(3, 4096, 120).tolist()
TOLERANCE = 1e-3
# The builder rounds the factor of Gemma's embedding to two digits behind the point, which llama.cpp computes.
ROUNDED = {"gemma2": 1e-2}
PHI3 = Row("Phi3", {"original_max_position_embeddings": 512})
# Rows of the zoo, the builder's precision and options. `accuracy_level` 1: ONNX Runtime computes in float32.
MODELS: dict[str, tuple[Row, str, Mapping[str, str]]] = {
    "llama-4": (ZOO["llama, 3.1"], "int4", {"op_types_to_quantize": "MatMul/Gather"}),
    "llama-4-asymmetric": (ZOO["llama, biases"], "int4", {"block_size": "16", "is_symmetric": "false"}),
    "llama-float": (ZOO["llama, linear"], "fp32", {}),
    "llama-tied-mixed": (ZOO["llama, tied"], "int4", {"block_size": "64", "algo_config": "k_quant_mixed"}),
    "qwen2-8": (ZOO["qwen2, tied"], "int8", {}),
    "qwen3-asymmetric": (ZOO["qwen3"], "int4", {"is_symmetric": "false"}),
    "phi3": (PHI3, "int4", {"is_symmetric": "false"}),
    "phi3-float": (PHI3, "fp32", {}),
    "granite": (ZOO["granite"], "int4", {}),
    "gemma2": (ZOO["gemma2"], "int4", {"windowed_kv_cache": "false"}),
}


def build(row: Row, precision: str, options: Mapping[str, str], path: Path) -> Path:
    """The model as ONNX Runtime GenAI's builder exports it."""
    source, out = make(row, path / "source"), path / "onnx"
    program = Path(genai.__file__).parent / "models" / "builder.py"
    extra = [f"{key}={value}" for key, value in {"accuracy_level": "1", **options}.items()]
    command = [sys.executable, str(program), "-i", str(source), "-o", str(out), "-p", precision, "-e", "cpu"]
    subprocess.run([*command, "-c", str(path), "--extra_options", *extra], check=True, capture_output=True)
    return out


def peer(path: Path) -> np.ndarray:
    """float32[tokens, vocabulary]: ONNX Runtime's logits."""
    session = onnxruntime.InferenceSession(str(path / "model.onnx"))
    decoder = json.loads((path / "genai_config.json").read_text())["model"]["decoder"]
    empty = np.zeros((1, decoder["num_key_value_heads"], 0, decoder["head_size"]), np.float32)
    count = len(IDS)
    known: dict[str, Any] = {
        "input_ids": np.array([IDS], np.int64),
        "attention_mask": np.ones((1, count), np.int64),
        "position_ids": np.arange(count)[None],
    }
    feed = {each.name: known.get(each.name, empty) for each in session.get_inputs()}
    return np.asarray(session.run(["logits"], feed)[0][0], np.float32)


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export") / request.param
    path.mkdir()
    path.joinpath("source").mkdir()
    return build(*MODELS[request.param], path)


def test_values_are_those_that_onnx_runtime_computes_with(model: Path, tmp_path: Path) -> None:
    """All codes are dequantized here, so that llama.cpp rounds no activations."""
    folder, wanted = Folder(model), peer(model)
    plan = plan_model(folder)
    loose = (
        replace(each, packing=replace(each.packing, exact=None)) if each.packing else each  # type: ignore[type-var]
        for each in plan.tensors
    )
    write(replace(plan, tensors=tuple(loose)), "F32", folder.stream, tmp_path / "m.gguf")
    with Engine(tmp_path / "m.gguf") as engine:
        found = engine.logits(IDS)
    assert np.abs(found - wanted).max() <= ROUNDED.get(model.parent.name, TOLERANCE) * wanted.std()


def test_codes_are_those_of_the_graph(model: Path, tmp_path: Path) -> None:
    _, found = written(Folder(model), "Q8_0", tmp_path / "m.gguf")
    graph = onnx.load(model / "model.onnx").graph
    arrays = {each.name: onnx.numpy_helper.to_array(each, str(model)) for each in graph.initializer}
    for node in graph.node:
        if node.op_type != "MatMulNBits" or not node.name.endswith(("down_proj/MatMul_Q4", "down_proj/MatMul_Q8")):
            continue
        layer = node.name.split("layers.")[1].split("/")[0]
        bits = next(each.i for each in node.attribute if each.name == "bits")
        type, blocks = found[f"blk.{layer}.ffn_down.weight"]
        if type not in (QuantType.Q4_0, QuantType.Q4_1):
            continue
        assert bits == 4
        codes = arrays[node.input[1]]
        wanted = np.stack([codes & 15, codes >> 4], -1).reshape(len(codes), -1)
        levels = unpack(type, blocks.reshape(-1, type.block_bytes)).levels.reshape(wanted.shape)
        np.testing.assert_array_equal(levels, wanted)


def test_the_file_answers_as_onnx_runtime_genai_does(tmp_path: Path) -> None:
    """A calm model, because llama.cpp rounds activations to 8 bits before it multiplies them by codes."""
    tmp_path.joinpath("source").mkdir()
    path = build(ZOO["llama"]._replace(spread=1.0), "int4", {}, tmp_path)
    folder, wanted = Folder(path), peer(path)
    write(plan_model(folder), "Q8_0", folder.stream, tmp_path / "m.gguf")
    with Engine(tmp_path / "m.gguf") as engine:
        found = engine.logits(IDS)
    generator = genai.Generator((loaded := genai.Model(str(path))), genai.GeneratorParams(loaded))
    generator.append_tokens(np.array([IDS], np.int32))
    np.testing.assert_allclose(generator.get_logits()[0][-1], wanted[-1], atol=1e-3)
    first = np.sort(wanted, 1)
    sure = first[:, -1] - first[:, -2] > 0.5
    assert (found.argmax(1) == wanted.argmax(1))[sure].all()
    assert divergence(wanted, found) <= 0.01
