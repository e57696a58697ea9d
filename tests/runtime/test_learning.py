"""Statistics of a model's inputs: an interrupted collection ends with the same sums, and broken models are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quant.gguf.header import read_file
from quant.importance import Importance
from runtime.meter import passages
from tests.publishing import make

pytestmark = pytest.mark.slow
WINDOWS = 4


class Killed(Exception):
    pass


def learned(path: Path, folder: Path, until: int = WINDOWS) -> list[int]:
    """Collect until so many windows are read; the numbers of the windows that were begun."""
    from runtime.meter.learning import learn

    begun = []

    def tell(done: int, total: int) -> None:
        assert total == WINDOWS
        if done >= until < WINDOWS:
            raise Killed
        begun.append(done)

    learn(path, passages.own("calibration"), folder, windows=WINDOWS, window=64, threads=1, tell=tell)
    return begun


def test_a_collection_that_was_ended_goes_on_and_comes_to_the_same_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime.meter import learning

    path, whole, parts = make(tmp_path / "model.gguf", "Q8_0"), tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    assert learned(path, whole) == [0, 1, 2, 3, 4]
    monkeypatch.setattr(learning, "_EVERY_SECONDS", -1.0)
    with pytest.raises(Killed):
        learned(path, parts, until=2)
    assert not (parts / learning.DONE).exists()
    assert learned(path, parts) == [2, 3, 4]
    one, other = (Importance.read(folder / learning.DONE) for folder in (whole, parts))
    assert one.squares.keys() == other.squares.keys() and len(one.squares) > 20
    for name, (sums, counts) in one.squares.items():
        assert np.array_equal(sums, other.squares[name].sums) and np.array_equal(counts, other.squares[name].counts)
    assert [file.name for file in parts.iterdir()] == [learning.DONE]
    (parts / "so-far.npz").write_bytes(b"torn")
    assert learned(path, parts) == [0, 1, 2, 3, 4]


def test_a_model_whose_inputs_are_not_finite_is_named(tmp_path: Path) -> None:
    from runtime.meter.nodes import InputsNotFinite

    path = make(tmp_path / "model.gguf", "F32")
    header = read_file(path)
    (norm,) = (each for each in header.tensors if each.name == "blk.1.attn_norm.weight")
    with path.open("r+b") as file:
        file.seek(header.data_offset + norm.offset)
        file.write(np.full(norm.shape[0], 1e30, "<f4").tobytes())
    with pytest.raises(InputsNotFinite, match=r"blk\.1\."):
        learned(path, tmp_path)
    assert not list(tmp_path.glob("importance*"))
