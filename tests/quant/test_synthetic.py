"""The folders that benchmarks measure with are models like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import synthetic
from quant.convert.planning import plan_model
from tests.converting import write
from tests.quant.engine import Engine
from tests.quant.support import Folder

SMALL = ["--layers", "3", "--width", "256", "--feed-forward", "512", "--heads", "4", "--kv-heads", "2"]


@pytest.mark.parametrize("more", [[], ["--shards", "3"], ["--tied"]], ids=["whole", "sharded", "tied"])
def test_a_synthetic_model_runs(tmp_path: Path, more: list[str]) -> None:
    options = synthetic.parser().parse_args([str(tmp_path / "m"), *SMALL, "--vocabulary", "4224", *more])
    parameters = synthetic.make(options.out, options)
    folder = Folder(options.out)
    plan = plan_model(folder)
    assert plan.parameters == parameters
    assert len(plan.shards) == options.shards
    write(plan, "Q8_0", folder.stream, tmp_path / "m.gguf")
    with Engine(tmp_path / "m.gguf") as engine:
        logits = engine.logits(engine.tokenize("Once upon a time"))
    assert logits.shape[1] == 4224
    assert np.isfinite(logits).all() and logits.std() > 0.1
