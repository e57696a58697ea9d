"""The demo model as a GGUF, made once per session by the project's own converter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from quant.convert.planning import plan_model
from tests.converting import write

DEMO = Path(__file__).parents[2] / "registry" / "demo"


class Folder:
    """A folder as a source of a model."""

    title = "a folder"

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        return sorted(file.name for file in self.path.iterdir())

    def size(self, name: str) -> int:
        return (self.path / name).stat().st_size

    def read(self, name: str, offset: int, size: int) -> bytes:
        return (self.path / name).read_bytes()[offset : offset + size]

    def stream(self, name: str) -> Iterator[bytes]:
        yield (self.path / name).read_bytes()


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
