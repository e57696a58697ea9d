"""Converted models against transformers: the same numbers come out.

Plain tests use logits that are committed (`make_golden.py`); those marked `oracle` run transformers.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from quant.convert.planning import plan_model
from tests.converting import write
from tests.quant.engine import Engine, divergence
from tests.quant.make_golden import EVERY, FAMILIES, GOLDEN, ROWS, TEXT, family_golden, reference_logits
from tests.quant.support import DEMO, TALE, Folder, safetensors
from tests.quant.zoo.making import weight

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


@pytest.mark.parametrize("family", FAMILIES)
def test_families_have_the_logits_that_transformers_had(tmp_path: Path, family: str) -> None:
    with np.load(family_golden(family)) as file:
        golden = dict(file)
    tensors = {}
    for name, shape in json.loads(str(golden["shapes"])).items():
        values = weight(name, tuple(shape), float(golden["spread"]))
        tensors[name] = ("F32", values.shape, values.tobytes())
    folder = Folder(DEMO).with_file("config.json", str(golden["config"]).encode())
    folder = folder.with_file("model.safetensors", safetensors(tensors))
    with Engine(convert(folder, "F32", tmp_path / "m.gguf"), exact=True) as engine:
        logits = engine.logits(golden["ids"].tolist(), 96)[list(ROWS), ::EVERY]
    assert np.abs(logits - golden["logits"]).max() <= 1e-3 * golden["logits"].std()


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
def test_tale_has_the_logits_of_transformers(tmp_path: Path) -> None:
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
