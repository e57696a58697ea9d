"""The check of a finished file lets every sound kind of model pass: with states, windows, for vectors, for scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.machine.inspection import Tried, Try, ask
from tests.quant.zoo import ZOO
from tests.quant.zoo.making import make
from tests.runtime.conftest import convert
from tests.server.test_rerank import write_ranker

KINDS = ("mamba", "lfm2", "falcon-h1", "gemma2", "bert", "modern-bert, ranking", "qwen3, embedding", "qwen3, ranking")


def tried(path: Path) -> object:
    return ask(Try(str(path), 1, 1 << 40), 120)


def test_a_ranker_passes(tmp_path: Path) -> None:
    path = convert(write_ranker(tmp_path / "ranker"), tmp_path / "m.gguf", "F32")
    assert tried(path) == Tried("")


@pytest.mark.oracle
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_model_passes(tmp_path: Path, kind: str) -> None:
    answer = tried(convert(make(ZOO[kind], tmp_path / "source"), tmp_path / "m.gguf", "F32"))
    assert isinstance(answer, Tried) and not answer.fault, answer
