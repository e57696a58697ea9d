"""Converted models against transformers: the same numbers come out.

Plain tests use logits that are committed (`make_golden.py`); those marked `oracle` run transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant.convert import plan_model
from tests.converting import write
from tests.quant.engine import Engine, divergence
from tests.quant.make_golden import GOLDEN, ROWS, TEXT, reference_logits
from tests.quant.support import DEMO, TALE, Folder

# Mean KL divergence in nats that a level may have from float32; about twice what it has.
LIMITS = {"BF16": 1e-4, "F16": 1e-5, "Q8_0": 1e-3, "Q6_K": 5e-3, "Q4_K_M": 3e-2}


def convert(folder: Folder, level: str, path: Path) -> Path:
    write(plan_model(folder), level, folder.stream, path)
    return path


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


def test_the_demo_in_f32_has_the_logits_of_transformers(tmp_path: Path, golden: dict[str, np.ndarray]) -> None:
    with Engine(convert(Folder(DEMO), "F32", tmp_path / "m.gguf")) as engine:
        ids = engine.tokenize(TEXT, special=True)
        assert ids == golden["ids"].tolist()
        logits = engine.logits(ids)[list(ROWS)]
        answer = engine.greedy(ids, 16)
    assert np.abs(logits - golden["logits"]).max() <= 1e-4 * golden["logits"].std()
    assert answer == golden["answer"].tolist()


@pytest.mark.parametrize("level", LIMITS)
def test_levels_of_the_demo_stay_close(tmp_path: Path, golden: dict[str, np.ndarray], level: str) -> None:
    with Engine(convert(Folder(DEMO), level, tmp_path / "m.gguf")) as engine:
        logits = engine.logits(golden["ids"].tolist())[list(ROWS)]
    assert divergence(golden["logits"], logits) <= LIMITS[level]


def needs_transformers() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
def test_tale_has_the_logits_of_transformers(tmp_path: Path) -> None:
    needs_transformers()
    if not TALE.is_dir():
        pytest.skip("the model `tale` is not beside this repository (../shared/models/tale)")
    held = (TALE.parent / "held.txt").read_text()[20_000:24_000]
    folder = Folder(TALE)
    with Engine(convert(folder, "F32", tmp_path / "f32.gguf")) as engine:
        ids = engine.tokenize(held)[:256]
        exact = engine.logits(ids)
    reference = reference_logits(TALE, ids)
    assert np.abs(exact - reference).max() <= 1e-3 * reference.std()
    for level, limit in LIMITS.items():
        with Engine(convert(folder, level, tmp_path / f"{level}.gguf")) as engine:
            assert divergence(reference, engine.logits(ids)) <= limit


def random_model(path: Path, kind: str, **config: Any) -> Path:
    """A small random model of transformers with peaked attention, saved with the demo's tokenizer."""
    import torch
    import transformers

    torch.manual_seed(3)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "vocab_size": 4160}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    made = getattr(transformers, f"{kind}Config")(**{**sizes, **heads, **config})
    model = getattr(transformers, f"{kind}ForCausalLM")(made)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            deviation = 0.5 if "norm" in name else 3 / weight.shape[-1] ** 0.5 if weight.dim() > 1 else 0.5
            weight.normal_(1 if "norm" in name else 0, deviation)
    model.save_pretrained(path, max_shard_size="1MB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((DEMO / name).read_bytes())
    return path


LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 64}),
    "biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "tied": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "wide rotation": ("Llama", {"rope_theta": 500000.0, "rms_norm_eps": 1e-3}),
    "linear": ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "llama3": ("Llama", {"rope_scaling": {**LLAMA_3, "original_max_position_embeddings": 64}}),
    "yarn": (
        "Llama",
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
    ),
}


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_have_the_logits_of_transformers(tmp_path: Path, variant: str) -> None:
    needs_transformers()
    kind, config = VARIANTS[variant]
    path = random_model(tmp_path / "model", kind, **config)
    assert json.loads((path / "config.json").read_text())["architectures"] == [f"{kind}ForCausalLM"]
    ids = np.random.default_rng(1).integers(3, 4096, 200).tolist()
    with Engine(convert(Folder(path), "F32", tmp_path / "m.gguf")) as engine:
        logits = engine.logits(ids)
    reference = reference_logits(path, ids)
    assert reference.std() > 1
    assert np.abs(logits - reference).max() <= 1e-3 * reference.std()
