"""Advice on models that are published small: from their headers, and from what was made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from quant.convert.base import ROUNDED
from quant.convert.planning import plan_model, sketch_model
from quant.gguf.header import read_file
from quant.levels.recipes import LADDER, weights_bytes
from quant.plan import ModelPlan
from runtime.machine.choosing import Chooser, this_machine
from runtime.machine.fit import Need
from runtime.machine.rule import Wish
from server.library import Facts
from server.loaded.estimate import smaller
from tests.converting import write
from tests.quant.test_mixtures import twins
from tests.quant.test_scaled import folder
from tests.quant.test_wrappers import gemma_that_sees


@pytest.mark.parametrize("level", ["Q8_0", "F16", "Q3_K_M"])
def test_what_was_made_of_it_tells_the_same_sizes(level: str, tmp_path: Path) -> None:
    source, path = folder(), tmp_path / "m.gguf"
    write(plan_model(source), level, source.stream, path)
    made, planned = ModelPlan.of(read_file(path)), sketch_model(source)
    assert [weights_bytes(made, name) for name in LADDER] == [weights_bytes(planned, name) for name in LADDER]


def test_the_level_that_would_fit_keeps_the_experts_as_published_too(tmp_path: Path) -> None:
    source, path = folder(), tmp_path / "m.gguf"
    write(plan_model(source), "Q8_0", source.stream, path)
    room = weights_bytes(sketch_model(source), "Q8_0")  # with experts that stay MXFP4, half as large as Q8_0
    assert smaller(Facts.of(read_file(path)).plan, Need(room + 1, 0, 0), room) == "Q8_0"


def test_the_reason_says_what_stays_and_what_is_left_out(tmp_path: Path) -> None:
    machine = this_machine(tmp_path)
    choice = Chooser(sketch_model(folder()), machine).choose(Wish())
    assert choice.reason.endswith(f"; weights stay MXFP4, as they are published; {ROUNDED}")
    choice = Chooser(sketch_model(twins()[1]), machine).choose(Wish())
    assert choice.reason.endswith("; guesses at further tokens (1.4 MB) left out")
    assert "text only" not in choice.reason
    choice = Chooser(sketch_model(gemma_that_sees("model.language_model.", "model.")), machine).choose(Wish())
    assert choice.reason.endswith("; text only: vision and a projector (22 B) left out")
