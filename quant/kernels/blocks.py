"""Block formats: numbers to blocks and back, by kernels compiled for the CPU at hand.

This module is the package's interface: `quantize` and `dequantize` between numbers and blocks, `pack` and `unpack`
between blocks and their scales and levels, `needed`, `warm` and `configure` for compilation. The module of a family of
formats is imported when one of its types is first used. Kernels are compiled on their first call, or ahead of it.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.errors import BadValues, UnknownLevel, WrongShape
from quant.kernels import plain
from quant.kernels.formats import BRAIN, FLOAT, HALF, Bytes, Floats, Format, Parts, kernels_of, registered
from quant.kernels.vectors import cache
from quant.kernels.vectors.compiler import Kernel
from quant.kernels.vectors.simd import LANES
from quant.types import QuantType

FAMILIES = {
    QuantType.Q4_0: "linear",
    QuantType.Q4_1: "offset",
    QuantType.Q5_0: "linear",
    QuantType.Q5_1: "offset",
    QuantType.Q8_0: "eight",
    QuantType.Q2_K: "affine",
    QuantType.Q4_K: "affine",
    QuantType.Q5_K: "affine",
    QuantType.Q3_K: "symmetric",
    QuantType.Q6_K: "symmetric",
    QuantType.IQ1_S: "shifted",
    QuantType.IQ1_M: "shifted",
    QuantType.IQ2_XXS: "grid",
    QuantType.IQ2_XS: "grid",
    QuantType.IQ2_S: "grid",
    QuantType.IQ3_XXS: "grid",
    QuantType.IQ3_S: "grid",
    QuantType.IQ4_NL: "codebook",
    QuantType.IQ4_XS: "codebook",
    QuantType.TQ1_0: "linear",
    QuantType.TQ2_0: "linear",
    QuantType.MXFP4: "float4",
    QuantType.NVFP4: "float4",
    QuantType.Q1_0: "sign",
    QuantType.Q2_0: "linear",
}
# Types whose blocks are single numbers: the kind of number, and the largest one.
PLAIN = {
    QuantType.F32: (FLOAT, 3.4028234e38),
    QuantType.F16: (HALF, 65504.0),
    QuantType.BF16: (BRAIN, 3.3895314e38),
}
# Elements that a thread works on at a time. With weights and levels they take half of a megabyte, so they stay in L2.
_SLAB = 1 << 16
# The least weight, as a share of the mean: a group whose weights are all 0 would have no best scale.
_LEAST_WEIGHT = 1e-5

configure = cache.configure


def warm(types: Iterable[str]) -> None:
    """Compile the kernels of the named types, or load them from the cache; returns when all are ready."""
    for kernel in needed(types):
        kernel.compile()


def cold(types: Iterable[str]) -> list[str]:
    """The named types whose kernels `warm` would have to compile, because the cache does not have them."""
    return sorted(name for name in types if not all(kernel.is_compiled for kernel in needed((name,))))


def needed(types: Iterable[str]) -> list[Kernel]:
    """The kernels by which numbers become the named types, each once."""
    kernels: dict[str, Kernel] = {}
    for name in types:
        type = QuantType.by_name(name)
        if type in PLAIN:
            own: tuple[Kernel, ...] = () if type is QuantType.F32 else (plain.narrow,)
        else:
            _family(type)
            own = kernels_of(type)
        kernels |= {kernel.name: kernel for kernel in (plain.widen, *own)}
    return list(kernels.values())


def quantize(
    x: NDArray[Any], type: str | QuantType, importance: NDArray[Any] | None = None, threads: int | None = None
) -> Bytes:
    """Blocks of `type` for every row of `x`.

    x: float32, float16, or uint16 holding BF16 bit patterns; [rows, columns] or [experts, rows, columns].
    importance: the weight of a squared error in each column, [columns] or [experts, columns]; only ratios matter.
    threads: the number of threads; by default one for each CPU. The bytes do not depend on it.
    Returns uint8[rows, row_bytes] or uint8[experts, rows, row_bytes].
    Raises WrongShape for columns that are no whole number of blocks, BadValues for NaN or infinity, UnknownLevel.
    """
    kind = _type(type)
    if x.ndim not in (2, 3):
        raise WrongShape(f"weights of shape {x.shape} are neither a matrix nor a stack of matrices")
    out = np.empty((*x.shape[:-1], kind.row_bytes(x.shape[-1])), np.uint8)
    weights = _weights(x, importance)
    threads = threads or _cpus()
    if weights is not None and weights.ndim == 2:
        for expert, weight, blocks in zip(x, weights, out, strict=True):
            _quantize_rows(expert, kind, weight, threads, blocks)
    else:
        _quantize_rows(x.reshape(-1, x.shape[-1]), kind, weights, threads, out.reshape(-1, out.shape[-1]))
    return out


def dequantize(blocks: Bytes, type: str | QuantType, columns: int) -> Floats:
    """The numbers that blocks stand for: uint8[…, row_bytes] → float32[…, columns], to the bit as ggml computes them.

    Raises WrongShape when the bytes of a row do not make `columns` values, UnknownLevel.
    """
    kind = _type(type)
    if blocks.shape[-1] != kind.row_bytes(columns):
        raise WrongShape(
            f"{columns} values of {kind.name} take {kind.row_bytes(columns)} bytes, not the {blocks.shape[-1]} given"
        )
    flat = np.ascontiguousarray(blocks).reshape(-1, kind.block_bytes)
    out = np.empty((*blocks.shape[:-1], columns), np.float32)
    target = out.reshape(-1, kind.block)
    step = _SLAB // kind.block
    for first in range(0, len(flat), step):
        # Blocks from elsewhere may hold any bits, NaN and infinity among them.
        with np.errstate(invalid="ignore", over="ignore"):
            target[first : first + step] = _restore(kind, flat[first : first + step])
    return out


def pack(type: str | QuantType, parts: Parts) -> Bytes:
    """Blocks uint8[n, block_bytes] with these scales and levels, wherever the caller has them from."""
    kind = _type(type)
    out = np.empty((len(parts.levels), kind.block_bytes), np.uint8)
    _format(kind).pack(Parts(*(np.require(part, requirements=["C", "A", "W"]) for part in parts)), out)
    return out


def unpack(type: str | QuantType, blocks: Bytes) -> Parts:
    """The scales and levels of blocks: the inverse of `pack`, for uint8[n, block_bytes]."""
    return _format(_type(type)).unpack(blocks)


def largest(type: QuantType) -> float:
    """The largest magnitude that a number may have in this type; `quantize` cuts larger ones to it."""
    return PLAIN[type][1] if type in PLAIN else _format(type).limit


def _type(type: str | QuantType) -> QuantType:
    kind = QuantType.by_name(type) if isinstance(type, str) else type
    if kind not in PLAIN and kind not in FAMILIES:
        known = ", ".join(kind.name for kind in (*PLAIN, *FAMILIES))
        raise UnknownLevel(f"there is no kernel for `{kind.name}`", hint=f"there are kernels for {known}")
    return kind


def _format(type: QuantType) -> Format:
    _family(type)
    return registered(type)


def _family(type: QuantType) -> ModuleType:
    return importlib.import_module(f"quant.kernels.{FAMILIES[type]}")


def _restore(type: QuantType, blocks: Bytes) -> Floats:
    if type is QuantType.F32:
        return blocks.view(np.float32)
    if type is QuantType.F16:
        return blocks.view(np.float16).astype(np.float32)
    if type is QuantType.BF16:
        return (blocks.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    format = _format(type)
    return format.restore(format.unpack(blocks))


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _weights(x: NDArray[Any], importance: NDArray[Any] | None) -> Floats | None:
    """Importance as float32 weights with a mean of 1 and no zeros; None without importance."""
    if importance is None:
        return None
    columns, experts = x.shape[-1], x.shape[:1] if x.ndim == 3 else ()
    if importance.shape not in ((columns,), (*experts, columns)):
        raise WrongShape(f"importance of shape {importance.shape} does not fit weights of shape {x.shape}")
    weights = importance.astype(np.float64)
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise BadValues("importance holds negative numbers, NaN or infinity")
    mean = weights.mean(axis=-1, keepdims=True)
    scaled = np.where(mean > 0, weights / np.where(mean > 0, mean, 1), 1)
    return np.maximum(scaled, _LEAST_WEIGHT).astype(np.float32)


def _quantize_rows(x: NDArray[Any], type: QuantType, weights: Floats | None, threads: int, out: Bytes) -> None:
    """Quantize slabs of rows, each by the next free thread."""
    slabs = _slabs(len(x), x.shape[1], type.block)
    threads = min(threads, len(slabs))
    if type in PLAIN:
        convert = _plain_converter(type)
    else:
        longest = max(end - start for start, end in slabs) if slabs else 0
        convert = _block_converter(type, weights, (longest, x.shape[1]))
    todo = iter(slabs)  # shared by the threads: `next` of a list's iterator is atomic

    def work() -> None:
        for start, end in todo:
            rows = np.require(x[start:end], requirements=["C", "A"])
            if not convert(rows, out[start:end]):
                raise BadValues(_describe_bad_value(rows, start))

    if threads <= 1:
        work()
        return
    with ThreadPoolExecutor(threads) as pool:
        for task in [pool.submit(work) for _ in range(threads)]:
            task.result()


def _slabs(rows: int, columns: int, block: int) -> list[tuple[int, int]]:
    """Ranges of rows, (first, end), of about _SLAB elements; where possible a multiple of 16 blocks, one tile."""
    whole = LANES // math.gcd(LANES, columns // block)
    step = max(1, _SLAB // columns)
    step -= step % whole if step > whole else 0
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def _widen(x: NDArray[Any], limit: float, out: Floats) -> bool:
    """Fill flat `out` with x as float32; False when a value is not finite. Sizes are multiples of 16."""
    kind = _kind_of_number(x)
    none = np.empty(0, np.uint16)
    if kind == FLOAT:
        return bool(plain.widen(x.view(np.uint32).ravel(), none, kind, limit, out))
    return bool(plain.widen(none.view(np.uint32), x.view(np.uint16).ravel(), kind, limit, out))


def _kind_of_number(x: NDArray[Any]) -> int:
    kinds = {np.dtype(np.float32): FLOAT, np.dtype(np.float16): HALF, np.dtype(np.uint16): BRAIN}
    if x.dtype not in kinds:
        raise BadValues(f"weights of {x.dtype} are neither float32, float16 nor BF16 in uint16")
    return kinds[x.dtype]


def _plain_converter(type: QuantType) -> Callable[[NDArray[Any], Bytes], bool]:
    """A function that writes rows as numbers of `type` into `out`; it returns False for NaN or infinity."""
    kind, limit = PLAIN[type]

    def convert(x: NDArray[Any], out: Bytes) -> bool:
        padded = _pad(x.ravel(), LANES)
        single = padded
        fine = True
        if padded.dtype != np.float32 or kind == FLOAT:
            single = np.empty(padded.size, np.float32)
            fine = _widen(padded, limit, single)
        if kind == FLOAT:
            result = single
        else:
            result = np.empty(single.size, np.uint16)
            fine = plain.narrow(single, kind, limit, result) and fine
        out[:] = result[: x.size].view(np.uint8).reshape(out.shape)
        return fine

    return convert


def _block_converter(
    type: QuantType, weights: Floats | None, shape: tuple[int, int]
) -> Callable[[NDArray[Any], Bytes], bool]:
    """A function that quantizes at most `shape` (rows, columns) into `out`, and returns False for NaN or infinity."""
    format = _format(type)
    all_weights = None
    if weights is not None:
        all_weights = _pad(np.tile(weights, shape[0]), LANES * type.block).reshape(-1, type.block)

    def convert(x: NDArray[Any], out: Bytes) -> bool:
        blocks = x.size // type.block
        values = np.empty((-(-blocks // LANES) * LANES, type.block), np.float32)
        values[blocks:] = 0
        if not _widen(x, format.limit, values.reshape(-1)[: x.size]):
            return False
        parts = format.search(values, None if all_weights is None else all_weights[: len(values)])
        target = out.reshape(-1, type.block_bytes)
        format.pack(parts.first(blocks), target)
        return True

    return convert


def _pad(flat: NDArray[Any], multiple: int) -> NDArray[Any]:
    """`flat`, with zeros behind it up to a whole number of `multiple`."""
    missing = -flat.size % multiple
    return np.concatenate([flat, np.zeros(missing, flat.dtype)]) if missing else flat


def _describe_bad_value(x: NDArray[Any], start: int) -> str:
    """The message for the first NaN or infinity in `x`, whose first row is number `start` of the tensor."""
    values = x
    if x.dtype == np.uint16:
        values = (x.astype(np.uint32) << 16).view(np.float32)
    row, column = np.argwhere(~np.isfinite(values))[0]
    return f"the weight in row {start + row}, column {column} is {values[row, column]}"
