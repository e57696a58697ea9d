"""The demo model as a GGUF, made once per session by the project's own converter."""

from __future__ import annotations

from pathlib import Path

import pytest

from quant.convert.planning import plan_model
from tests.converting import write
from tests.quant.support import DEMO, Folder


def convert(folder: Path, out: Path, level: str = "BF16") -> Path:
    source = Folder(folder)
    write(plan_model(source), level, source.stream, out, threads=1)
    return out


@pytest.fixture(scope="session")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in F32, where other batches round the same tokens too little to change a text."""
    return convert(DEMO, tmp_path_factory.mktemp("models") / "exact.gguf", "F32")


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(DEMO, tmp_path_factory.mktemp("models") / "demo.gguf")
