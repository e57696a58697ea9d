"""Models as mlx-lm itself quantizes and stores them: the logits are those that MLX computes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.convert.planning import plan_model
from quant.levels.budget import types_of
from quant.levels.taken import clauses
from tests.converting import write
from tests.quant.engine import Engine, divergence
from tests.quant.layouts import FAMILIES
from tests.quant.support import Folder
from tests.quant.zoo.sketched import Sketch, make

pytestmark = [pytest.mark.oracle, pytest.mark.slow, pytest.mark.filterwarnings("default")]
pytest.importorskip("transformers", reason="the extra `oracle` is not installed")
mx = pytest.importorskip("mlx.core", reason="the extra `mlx` is not installed")
tree_map_with_path = pytest.importorskip("mlx.utils", reason="the extra `mlx` is not installed").tree_map_with_path
mlx = pytest.importorskip("mlx_lm.utils", reason="the extra `mlx` is not installed")

IDS = np.random.default_rng(1).integers(3, 4096, 120).tolist()
TOLERANCE = 1e-3
_WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 64}
_TYPES = {"LlamaForCausalLM": "llama", "Qwen3ForCausalLM": "qwen3", "Qwen3MoeForCausalLM": "qwen3_moe"}
_TYPES |= {"Gemma3ForCausalLM": "gemma3_text", "Qwen3NextForCausalLM": "qwen3_next", "Phi3ForCausalLM": "phi3"}
# Settings without which mlx-lm reads no configuration of a mixture; they say what is so without them.
_WANTED = {"decoder_sparse_step": 1, "mlp_only_layers": [], "partial_rotary_factor": 0.25}
# MLX looks at the mask of the layer with full attention, which is the sixth. Its heads' norms add 1 to their weights.
GEMMA_3 = FAMILIES["gemma3"]._replace(bare=("lm_head.weight",))
GEMMA_3 = GEMMA_3._replace(config={**GEMMA_3.config, "num_hidden_layers": 6, "sliding_window": 512})
# MLX has a number of its own in the norms of linear attention's queries and keys.
QWEN_3_NEXT = FAMILIES["qwen3next"]._replace(config={**FAMILIES["qwen3next"].config, "rms_norm_eps": 1e-6})
QWEN_3 = Sketch("Qwen3ForCausalLM", _WIDE)
# A family, and how MLX quantizes it; what the plan says of its codes.
MODELS: dict[str, tuple[Sketch, dict[str, Any], str]] = {
    "llama-4-64": (FAMILIES["llama"], {"group_size": 64, "bits": 4}, "taken over as they are (Q4_1)"),
    "llama-3-32": (FAMILIES["llama"], {"group_size": 32, "bits": 3}, "taken over as they are (Q4_1)"),
    "llama-8-64": (FAMILIES["llama"], {"group_size": 64, "bits": 8}, "weights are made of 8-bit codes"),
    "qwen3-5-128": (QWEN_3, {"group_size": 128, "bits": 5}, "taken over as they are (Q5_1)"),
    "qwen3-mxfp4": (QWEN_3, {"group_size": 32, "bits": 4, "mode": "mxfp4"}, "weights stay MXFP4"),
    "qwen3-nvfp4": (QWEN_3, {"group_size": 16, "bits": 4, "mode": "nvfp4"}, "weights stay NVFP4"),
    "qwen3moe-4-64": (FAMILIES["qwen3moe"], {"group_size": 64, "bits": 4}, "taken over as they are (Q4_1)"),
    "gemma3-4-64": (GEMMA_3, {"group_size": 64, "bits": 4}, "taken over as they are (Q4_1)"),
    "phi3-4-32": (FAMILIES["phi3"], {"group_size": 32, "bits": 4}, "taken over as they are (Q4_1)"),
    "qwen3next-4-64": (QWEN_3_NEXT, {"group_size": 64, "bits": 4}, "taken over as they are (Q4_1)"),
}


def build(sketch: Sketch, how: dict[str, Any], path: Path) -> tuple[Path, np.ndarray]:
    """The model as mlx-lm stores it in `path`, and MLX's own logits, float32[tokens, vocabulary]."""
    source = make(sketch, path / "source")
    config = json.loads((source / "config.json").read_text())
    config = {"tie_word_embeddings": False, **config, "model_type": _TYPES[sketch.name], **_WANTED}
    (source / "config.json").write_text(json.dumps(config))
    model, config = mlx.load_model(source)
    if sketch is GEMMA_3:
        calm = lambda name, x: x * 0 if name.endswith(("q_norm.weight", "k_norm.weight")) else x  # noqa: E731
        model.update(tree_map_with_path(calm, model.parameters()))
    model, config = mlx.quantize_model(model, config, **how)
    mlx.save_model(path / "mlx", model)
    mlx.save_config(config, path / "mlx" / "config.json")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / "mlx" / name).write_bytes((source / name).read_bytes())
    return path / "mlx", np.array(model(mx.array([IDS]))[0].astype(mx.float32))


def first_tokens(wanted: np.ndarray, found: np.ndarray) -> Iterable[bool]:
    """For every token of which the peer is sure whether it is ours as well."""
    best = np.sort(wanted, 1)
    sure = best[:, -1] - best[:, -2] > 0.5
    assert sure.any()
    return (found.argmax(1) == wanted.argmax(1))[sure]


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, np.ndarray]:
    sketch, how, told = MODELS[request.param]
    return told, *build(sketch, how, tmp_path_factory.mktemp(request.param))


def test_values_are_those_that_mlx_computes_with(model: tuple[str, Path, np.ndarray], tmp_path: Path) -> None:
    """All codes are dequantized here, so that llama.cpp rounds no activations."""
    _, path, wanted = model
    folder = Folder(path)
    plan = plan_model(folder)
    loose = (
        replace(each, packing=replace(each.packing, exact=None)) if each.packing else each  # type: ignore[type-var]
        for each in plan.tensors
    )
    write(replace(plan, tensors=tuple(loose)), "F32", folder.stream, tmp_path / "m.gguf")
    with Engine(tmp_path / "m.gguf", exact=True) as engine:
        found = engine.logits(IDS)
    assert np.abs(found - wanted).max() <= TOLERANCE * wanted.std()


def test_the_file_answers_as_mlx_does(model: tuple[str, Path, np.ndarray], tmp_path: Path) -> None:
    told, path, wanted = model
    folder = Folder(path)
    plan = plan_model(folder)
    assert any(told in clause for clause in clauses(plan, types_of(plan, "Q8_0")))
    write(plan, "Q8_0", folder.stream, tmp_path / "m.gguf")
    with Engine(tmp_path / "m.gguf") as engine:
        found = engine.logits(IDS)
    assert all(first_tokens(wanted, found))
    assert divergence(wanted, found) <= 0.01
