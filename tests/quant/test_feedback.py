"""Error feedback: blocks that ggml reads, closer in their products than any weighing of columns; odd statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import quant
from benchmarks import ggml
from quant.errors import BadValues, WrongShape
from quant.feedback.factor import GramFactor
from quant.feedback.matrix import quantize
from quant.feedback.stored import StoredGrams, write_grams
from quant.feedback.traits import TRAITS
from quant.types import QuantType

Array = np.ndarray


def inputs(columns: int, tokens: int = 2048) -> Array:
    """Inputs that depend on each other, a few columns of which are large."""
    chance = np.random.default_rng(1)
    mixed = chance.standard_normal((tokens, columns // 2)) @ chance.standard_normal((columns // 2, columns))
    alone = chance.standard_normal((tokens, columns))
    return ((mixed + alone) * np.exp(chance.standard_normal(columns))).astype(np.float32)


def gram(columns: int) -> Array:
    x = inputs(columns)
    return x.T @ x / len(x)


def weights(rows: int, columns: int) -> Array:
    return (np.random.default_rng(2).standard_t(5, (rows, columns)) * 0.02).astype(np.float32)


def error(x: Array, restored: Array, products: Array) -> float:
    """Σ of the squares of the products' errors, for all tokens together."""
    wrong = (restored - x).astype(np.float64)
    return float(((wrong @ products) * wrong).sum())


@pytest.mark.parametrize("type", TRAITS, ids=lambda type: type.name)
def test_products_are_closer_than_with_importance_in_blocks_that_ggml_reads(type: QuantType) -> None:
    columns = 512
    products, x = gram(columns), weights(48, columns)
    made = quantize(x, type, GramFactor(products))
    restored = ggml.dequantize(made, type, columns)
    assert ggml.valid(made, type) and (restored == quant.dequantize(made, type, columns)).all()
    weighed = ggml.quantize(x, type, products.diagonal().copy())
    ratio = error(x, restored, products) / error(x, ggml.dequantize(weighed, type, columns), products)
    assert ratio < 0.5


def test_no_round_raises_the_error() -> None:
    products, x = gram(256), weights(32, 256)
    factor = GramFactor(products)
    damped = np.empty_like(factor.curvature)
    damped[np.ix_(factor.order, factor.order)] = factor.curvature
    for type in (QuantType.Q2_K, QuantType.Q6_K, QuantType.IQ4_NL, QuantType.Q4_1):
        made = [quant.dequantize(quantize(x, type, factor, rounds=rounds), type, 256) for rounds in range(4)]
        errors = [error(x, each, damped) for each in made]
        assert errors == sorted(errors, reverse=True)


def test_the_bytes_depend_neither_on_threads_nor_on_other_rows() -> None:
    x, products = weights(530, 256), gram(256)
    whole = quantize(x, QuantType.Q4_K, GramFactor(products), threads=3)
    again = GramFactor(products, threads=3)
    parts = [quantize(part, QuantType.Q4_K, again) for part in (x[:16], x[16:293], x[293:])]
    assert (np.concatenate(parts) == whole).all()


def test_weights_of_sixteen_bits_are_taken_as_they_are() -> None:
    factor, x = GramFactor(gram(256)), weights(16, 256)
    half, brain = x.astype(np.float16), (x.view(np.uint32) >> 16).astype(np.uint16)
    for given, meant in ((half, half.astype(np.float32)), (brain, (brain.astype(np.uint32) << 16).view(np.float32))):
        assert (quantize(given, QuantType.Q4_K, factor) == quantize(meant, QuantType.Q4_K, factor)).all()


def test_the_factor_is_that_of_the_damped_matrix_in_its_order() -> None:
    products = gram(608)  # two super-blocks and a rest
    factor = GramFactor(products, threads=2)
    scaled = products / products.diagonal().mean() + factor.damping * np.eye(608)
    assert sorted(factor.order) == list(range(608))
    assert np.allclose(factor.curvature, scaled[np.ix_(factor.order, factor.order)], rtol=1e-5)
    lower = np.tril(factor.coefficients, -1).astype(np.float64) + np.eye(608)
    middle = np.linalg.solve(lower, np.linalg.solve(lower, factor.curvature.astype(np.float64)).T)
    off = middle - np.diag(middle.diagonal())
    assert abs(off).max() < 1e-4 * middle.diagonal().max()
    assert (middle.diagonal() > 0).all()


@pytest.mark.parametrize("kind", ["one direction", "few tokens", "dead columns", "one column", "huge"])
def test_singular_statistics_do_no_harm(kind: str) -> None:
    x, seen = weights(32, 256), inputs(256, 64)
    if kind == "one direction":
        seen = seen[:1]
    elif kind == "few tokens":
        seen = seen[:5]
    elif kind == "dead columns":
        seen[:, 40:200] = 0
    elif kind == "one column":
        seen[:, 1:] = 0
    else:
        seen *= np.float32(1e15)
    products = seen.T @ seen
    made = quant.dequantize(quantize(x, QuantType.Q4_K, GramFactor(products)), "Q4_K", 256)
    weighed = quant.dequantize(quant.quantize(x, "Q4_K", products.diagonal().copy()), "Q4_K", 256)
    assert np.isfinite(made).all()
    assert error(x, made, products) <= error(x, weighed, products)
    assert abs(made - x).max() < 0.5 * abs(x).max()


def test_statistics_that_are_no_gram_matrix_are_refused() -> None:
    fine = gram(256)
    broken = {
        "nan": fine.copy(),
        "infinite": fine.copy(),
        "negative": fine.copy(),
        "empty": fine * 0,
        "odd": fine.copy(),
    }
    broken["nan"][3, 5] = np.nan
    broken["infinite"][7, 7] = np.inf
    broken["negative"][9, 9] = -1
    broken["odd"][:] = -1e9
    np.fill_diagonal(broken["odd"], 1)
    for each in broken.values():
        with pytest.raises(BadValues):
            GramFactor(each)
    for shape in ((256, 255), (250, 250), (0, 0)):
        with pytest.raises(WrongShape):
            GramFactor(np.ones(shape, np.float32))


def test_rows_that_are_not_finite_or_do_not_fit_are_refused() -> None:
    factor, x = GramFactor(gram(288)), weights(16, 288)
    with pytest.raises(WrongShape):
        quantize(x, QuantType.Q4_K, factor)  # not whole super-blocks
    with pytest.raises(WrongShape):
        quantize(x[:, :256], QuantType.Q4_0, factor)
    restored = quant.dequantize(quantize(x, QuantType.Q4_0, factor), "Q4_0", 288)
    assert error(x, restored, gram(288)) < error(x, quant.dequantize(quant.quantize(x, "Q4_0"), "Q4_0", 288), gram(288))
    x[3, 4] = np.nan
    with pytest.raises(BadValues):
        quantize(x, QuantType.Q4_0, factor)
    zeros = quantize(np.zeros((3, 288), np.float32), QuantType.Q5_1, factor)
    assert (quant.dequantize(zeros, "Q5_1", 288) == 0).all()


def test_gram_matrices_come_back_from_their_file_whatever_happens_to_it(tmp_path: Path) -> None:
    products = {"blk.0.attn_q.weight": gram(64), "blk.0.ffn_down.weight": gram(96)}
    owners = {"blk.0.attn_q.weight": "blk.0.attn_q.weight", "blk.0.attn_k.weight": "blk.0.attn_q.weight"}
    owners["blk.0.ffn_down.weight"] = "blk.0.ffn_down.weight"
    path = tmp_path / "grams.gguf"
    write_grams(path, "a text", {name: len(each) for name, each in products.items()}, owners, products.__getitem__)
    stored = StoredGrams(path)
    path.unlink()
    for name, each in products.items():
        np.testing.assert_array_equal(stored.gram(name), np.triu(each) + np.triu(each, 1).T)
    assert stored.factor("blk.0.attn_k.weight") is stored.factor("blk.0.attn_q.weight")
    assert stored.factor("output.weight") is None and stored.entries == {"lm.feedback": "a text"}
