"""Kernels on what hypothesis thinks of: the error stays within what the levels allow; nothing is ever corrupt."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import quant
from benchmarks import ggml
from quant.kernels.blocks import FAMILIES, Parts, pack, unpack
from quant.types import QuantType

BLOCKS = list(FAMILIES)
# The most that Σ(x − x̂)² may be of Σx², for any x: levels as far apart as they are, in groups as long as they are.
WORST = {
    "Q8_0": 1e-3, "Q6_K": 5e-3, "Q5_0": 0.012, "Q5_1": 0.012, "Q5_K": 0.012, "Q4_0": 0.05, "Q4_1": 0.05, "Q4_K": 0.05,
    "IQ4_NL": 0.05, "IQ4_XS": 0.05, "MXFP4": 0.05, "Q3_K": 0.12, "IQ3_S": 0.25, "IQ3_XXS": 0.35, "Q2_K": 0.35,
}  # fmt: skip

# Below it a super-block's scale (F16, so at least 2⁻²⁴ apart, times 7 bits of sub-scale and 5 of level) is too coarse.
FINEST = 2.0**-12


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray:
    """Rows of any size, smooth or spiky, with zeros among them; none beyond what every type can hold."""
    rows = draw(st.integers(1, 5))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 256)) * 10.0 ** draw(st.integers(-3, 1))
    shape = draw(st.sampled_from(["plain", "spiky", "sparse", "positive", "few", "steps"]))
    if shape == "spiky":
        x *= 10.0 ** rng.uniform(-2, 2, x.shape)
    elif shape == "sparse":
        x *= rng.random(x.shape) < draw(st.sampled_from([0.01, 0.1, 0.5]))
    elif shape == "positive":
        x = np.abs(x) + draw(st.sampled_from([0.0, 1.0]))
    elif shape == "few":
        x = np.sign(x) * np.abs(x).max()
    elif shape == "steps":
        x = np.rint(x)
    return x.astype(np.float32)


def weights(seed: int) -> np.ndarray | None:
    return None if seed == 0 else (np.random.default_rng(seed).exponential(1, 256) ** 2).astype(np.float32)


@pytest.mark.parametrize("type", [type for type in BLOCKS if type.name in WORST], ids=lambda type: type.name)
@settings(max_examples=15)
@given(x=matrices())
def test_errors_stay_within_the_distance_of_levels(type: QuantType, x: np.ndarray) -> None:
    there = quant.dequantize(quant.quantize(x, type, threads=1), type, 256).astype(np.float64)
    coarse = np.count_nonzero(x) * FINEST**2
    assert ((x - there) ** 2).sum() <= WORST[type.name] * (x.astype(np.float64) ** 2).sum() + coarse


@pytest.mark.parametrize("type", BLOCKS, ids=lambda type: type.name)
@settings(max_examples=10)
@given(
    x=arrays(
        np.float32, (3, 256), elements=st.floats(width=32, allow_nan=False, allow_infinity=False), fill=st.just(0.0)
    ),
    seed=st.integers(0, 3),
)
def test_no_finite_input_makes_a_corrupt_block(type: QuantType, x: np.ndarray, seed: int) -> None:
    blocks = quant.quantize(x, type, weights(seed), threads=1)
    assert ggml.valid(blocks, type)
    assert np.isfinite(quant.dequantize(blocks, type, 256)).all()


@pytest.mark.parametrize("type", BLOCKS, ids=lambda type: type.name)
@settings(max_examples=10)
@given(x=matrices(), seed=st.integers(0, 3))
def test_no_worse_than_all_zeros(type: QuantType, x: np.ndarray, seed: int) -> None:
    importance = weights(seed)
    there = quant.dequantize(quant.quantize(x, type, importance, threads=1), type, 256).astype(np.float64)
    count = 1.0 if importance is None else importance
    assert (count * (x - there) ** 2).sum() <= 1.001 * (count * x.astype(np.float64) ** 2).sum() + 1e-12


@pytest.mark.parametrize("type", [QuantType.Q4_K, QuantType.Q6_K, QuantType.Q8_0], ids=lambda type: type.name)
@settings(max_examples=10)
@given(seed=st.integers(0, 1000))
def test_parts_from_elsewhere_are_packed(type: QuantType, seed: int) -> None:
    """Levels changed by hand: only the elements meant change."""
    rng = np.random.default_rng(seed)
    blocks = quant.quantize(rng.standard_normal((4, 256)).astype(np.float32), type).reshape(-1, type.block_bytes)
    parts = unpack(type, blocks)
    levels = parts.levels.copy()
    row, column = rng.integers(len(levels)), rng.integers(levels.shape[1])
    levels[row, column] ^= 1
    changed = pack(type, Parts(**{**parts._asdict(), "levels": levels}))
    before, after = (quant.dequantize(raw, type, type.block) for raw in (blocks, changed))
    different = np.argwhere(before != after)
    assert len(different) <= 1
    assert all((place == (row, column)).all() for place in different)
