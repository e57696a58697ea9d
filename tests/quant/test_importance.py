"""Importance files of llama.cpp: read and written in both forms, checked against the model, refused when broken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quant.convert.planning import plan_model
from quant.errors import BadImportance
from quant.gguf.header import read_file
from quant.gguf.writer import encode_header
from quant.importance import Importance, InputSquares
from quant.plan import Part, Read, TensorPlan
from quant.stream.pipeline import Conversion
from quant.stream.slabs import Slab, weights_of
from quant.types import QuantType, Tensor
from tests.converting import write
from tests.quant.support import DEMO, Folder

F32 = QuantType.by_name("F32")
DENSE, STACK = "blk.0.attn_q.weight", "blk.1.ffn_up_exps.weight"
TENSORS = [Tensor(DENSE, (64, 32), F32), Tensor(STACK, (64, 16, 4), F32), Tensor("output_norm.weight", (64,), F32)]


def made() -> Importance:
    chance = np.random.default_rng(1)
    dense = InputSquares(chance.random((1, 64)) * 100, np.array([1000.0]))
    sums = chance.random((4, 64)) * 100
    sums[2] = 0
    return Importance({DENSE: dense, STACK: InputSquares(sums, np.array([700.0, 200, 0, 100]))}, ("a.txt",), 2, 512)


def test_the_gguf_form_is_read_back_and_is_what_the_gguf_package_reads(tmp_path: Path) -> None:
    path, before = tmp_path / "i.gguf", made()
    before.write(path)
    after = Importance.read(path)
    assert (after.datasets, after.chunks, after.chunk) == (("a.txt",), 2, 512)
    for name, (sums, counts) in before.squares.items():
        assert np.allclose(after.squares[name].sums, sums, rtol=1e-6)
        assert (after.squares[name].counts == counts).all()
    gguf = pytest.importorskip("gguf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert tensors[f"{STACK}.in_sum2"].shape.tolist() == [64, 4]
    assert tensors[f"{STACK}.counts"].data.reshape(-1).tolist() == [700, 200, 0, 100]


def test_the_older_form_keeps_the_means(tmp_path: Path) -> None:
    path, before = tmp_path / "i.dat", made()
    before.write_old(path)
    after = Importance.read(path)
    assert after.datasets == ("a.txt",) and after.chunks == 2
    ours, theirs = before.weights(DENSE, 64), after.weights(DENSE, 64)
    assert ours is not None and theirs is not None and np.allclose(ours, theirs, rtol=1e-6)
    stack, old = before.weights(STACK, 64, 4), after.weights(STACK, 64, 4)
    assert stack is not None and old is not None and np.allclose(stack[[0, 1, 3]], old[[0, 1, 3]], rtol=1e-6)


def test_experts_without_tokens_are_named_and_weigh_as_the_others_do() -> None:
    assert made().unrouted() == {STACK: [2]}
    weights = made().weights(STACK, 64, 4)
    assert weights is not None and np.allclose(weights[2], weights[[0, 1, 3]].mean(axis=0))
    assert made().weights("blk.9.attn_q.weight", 64) is None


def test_importance_of_another_model_is_refused_by_name_and_by_size() -> None:
    made().check(TENSORS)
    with pytest.raises(BadImportance, match=r"another model: it has `blk\.0\.attn_q\.weight`"):
        made().check(TENSORS[1:])
    with pytest.raises(BadImportance, match="64 inputs there and 128 here"):
        made().check([Tensor(DENSE, (128, 32), F32), TENSORS[1]])
    with pytest.raises(BadImportance, match="no matrix"):
        Importance({}).check(TENSORS)


@pytest.mark.parametrize("form", ["gguf", "dat"])
def test_squares_that_are_not_finite_are_refused(tmp_path: Path, form: str) -> None:
    path = tmp_path / "i"
    bad = Importance({DENSE: InputSquares(np.array([[np.nan, 1.0]]), np.array([1.0]))})
    bad.write(path) if form == "gguf" else bad.write_old(path)
    with pytest.raises(BadImportance, match="not finite"):
        Importance.read(path)


@pytest.mark.parametrize("form", ["gguf", "dat"])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, form: str) -> None:
    path = tmp_path / "i"
    made().write(path) if form == "gguf" else made().write_old(path)
    data = path.read_bytes()
    end = len(data) - (200 if form == "gguf" else 20)
    for size in [*range(0, end, 97), end]:
        path.write_bytes(data[:size])
        with pytest.raises(BadImportance):
            Importance.read(path)


def test_a_model_is_no_importance(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(encode_header({"general.architecture": "llama"}, []))
    with pytest.raises(BadImportance, match="no importance file"):
        Importance.read(path)


@pytest.mark.slow
def test_a_matrix_is_quantized_by_its_own_importance_and_the_file_says_so(tmp_path: Path) -> None:
    folder = Folder(DEMO)
    plan = plan_model(folder)
    tensor = next(each for each in plan.tensors if each.name == "blk.0.attn_output.weight")
    squares = np.random.default_rng(1).random((1, tensor.shape[-1])) ** 4
    importance = Importance({tensor.name: InputSquares(squares, np.array([2.0]))}, ("a", "b"), 2, name="i.gguf")
    found = {}
    for given in (None, importance):
        write(plan, "Q4_0", folder.stream, tmp_path / "made.gguf", importance=given)
        header = read_file(tmp_path / "made.gguf")
        found[given is not None] = {
            each.name: (tmp_path / "made.gguf").read_bytes()[header.data_offset + each.offset :][: each.nbytes]
            for each in header.tensors
        }
    differ = [name for name, data in found[True].items() if data != found[False][name]]
    assert differ == [tensor.name]
    about = header.metadata
    assert (about["quantize.imatrix.file"], about["quantize.imatrix.dataset"]) == ("i.gguf", "a, b")
    assert about["lm.importance"] == importance.entries["lm.importance"] != made().entries["lm.importance"]
    assert Conversion(plan, "Q4_0", None, importance).fingerprint != Conversion(plan, "Q4_0").fingerprint
    with pytest.raises(BadImportance, match="another model"):
        Conversion(plan, "Q4_0", None, made())


def test_each_expert_of_a_stack_has_its_own_importance() -> None:
    part = Part("x", 0, 1)
    stack = TensorPlan(STACK, (4, 16, 64), "F32", parts=(part,) * 4)
    own = made().weights(STACK, 64, 4)
    assert own is not None
    for number in range(4):
        slab = Slab(stack, np.zeros((16, 64)), 0, read=Read(0, number, part))
        assert np.array_equal(weights_of(slab, made()), own[number])
    whole = Slab(replace(stack, parts=()), np.zeros((16, 64)), 0, read=Read(0, 0, part))
    assert np.allclose(weights_of(whole, made()), own.mean(axis=0))
    dense = Slab(TensorPlan(DENSE, (32, 64), "F32"), np.zeros((32, 64)), 0)
    assert np.array_equal(weights_of(dense, made()), made().weights(DENSE, 64))
    assert weights_of(Slab(TensorPlan("output.weight", (32, 64), "F32"), np.zeros((32, 64)), 0), made()) is None
