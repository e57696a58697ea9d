"""What the output feels of a type: weights replaced in memory do as a file with these weights, and come back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quant.convert.planning import plan_model
from quant.gguf.header import read_file
from quant.levels.harms import MeasuredHarms
from quant.types import QuantType, Tensor
from runtime.meter import passages
from runtime.meter.sensitivity import grouped
from runtime.meter.sizes import harms_file
from tests.converting import write
from tests.publishing import make
from tests.quant.support import DEMO, Folder

WINDOW, THREADS = 128, 2


class Killed(Exception):
    pass


def test_groups_are_few_enough_and_hold_every_matrix_once() -> None:
    roles = ("attn_q", "attn_k", "ffn_down", "ffn_down_exps")
    names = [f"blk.{layer}.{role}.weight" for layer in range(30) for role in roles]
    matrices = [Tensor(name, (32, 32), QuantType.F32) for name in ("token_embd.weight", *names)]
    for most in (6, 32, 64, 500):
        groups = grouped(matrices, most)  # type: ignore[arg-type]
        assert len(groups) <= most
        assert sorted(each.name for group in groups for each in group) == sorted(each.name for each in matrices)
        assert all(len({each.name.split(".")[2] for each in group}) == 1 for group in groups if len(group) > 1)
    assert [len(group) for group in grouped(matrices, 500)] == [1] * 121  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("level", ["F32", "BF16", "Q8_0"])
def test_replaced_weights_do_as_a_file_with_them_and_come_back(level: str, tmp_path: Path) -> None:
    from runtime.meter.patching import PatchedReader
    from runtime.meter.windows import WindowReader

    path, other = make(tmp_path / "model.gguf", level), tmp_path / "other.gguf"
    patched = PatchedReader(path, WINDOW, THREADS)
    tokens = next(iter(patched.reader.windows(passages.own("held"), 1).values()))
    assert "token_embd.weight" in patched.find(tokens) and len(patched.find(tokens)) == 43
    before = np.stack([row.copy() for row in patched.reader.logits(tokens)])
    (tensor,) = (each for each in patched.header.tensors if each.name == "blk.3.ffn_down.weight")
    rows = patched.stored(tensor)[110:120].copy()
    with patched.replaced(iter([(tensor, 10, rows)])):
        during = np.stack([row.copy() for row in patched.reader.logits(tokens)])
    after = np.stack([row.copy() for row in patched.reader.logits(tokens)])
    data = bytearray(path.read_bytes())
    begin = patched.header.data_offset + tensor.offset + 10 * rows.shape[1]
    data[begin : begin + rows.size] = rows.tobytes()
    other.write_bytes(data)
    wanted = np.stack([row.copy() for row in WindowReader(other, WINDOW, THREADS).logits(tokens)])
    assert np.array_equal(before, after) and not np.allclose(before, during, atol=1e-3)
    assert np.abs(during - wanted).max() < 1e-3


@pytest.mark.slow
def test_measured_harms_foretell_the_divergence_and_survive_a_kill(tmp_path: Path) -> None:
    from runtime.meter.kept import compare, record
    from runtime.meter.learning import learn
    from runtime.meter.sensitivity import learn_harms
    from runtime.meter.windows import WindowReader

    path, steps = make(tmp_path / "model.gguf", "F32"), []
    learn(path, passages.own("calibration"), tmp_path, windows=4, window=WINDOW, threads=2, tell=lambda *_: None)

    def tell(done: int, total: int) -> None:
        assert total == 86
        steps.append(done)
        if len(steps) == 60:
            raise Killed

    def measure() -> MeasuredHarms:
        return learn_harms(
            path, passages.own("calibration"), tmp_path, window=WINDOW, threads=THREADS, tell=tell, fed=False
        )

    with pytest.raises(Killed):
        measure()
    harms = measure()
    assert harms == MeasuredHarms.read(tmp_path / harms_file(fed=False))
    matrices = [each for each in read_file(path).tensors if len(each.shape) > 1]
    assert harms.expected.keys() == {each.name for each in matrices}
    for each in harms.expected.values():
        assert each[QuantType.Q2_K] > each[QuantType.Q4_K] > each[QuantType.Q6_K] > each[QuantType.F16]
    reader, mixed = WindowReader(path, WINDOW, THREADS), tmp_path / "mixed.gguf"
    kept = [record(each, reader.logits(each)) for each in reader.windows(passages.own("held"), 8).values()]
    write(plan_model(Folder(DEMO)), "Q4_K_M", Folder(DEMO).stream, mixed, harms=harms)
    types = {each.name: each.type for each in read_file(mixed).tensors}
    model = WindowReader(mixed, WINDOW, THREADS)
    found = np.mean([compare(each, model.logits(each.tokens)).divergence.mean() for each in kept])
    expected = sum(harms.expected[each.name][types[each.name]] for each in matrices)
    assert 0.5 < found / expected < 2
