"""The quantization kernels against ggml's, in one run: speed per core, error, and what compilation costs.

    python -m benchmarks.kernels [--quick] [--json] [--types Q4_K,Q6_K]

Speed: one thread each, CPU time, the best of several turns that alternate. Error: Σ w·(x − x̂)², w the importance or 1,
as a ratio to the reference's, over all matrices of a set whose columns the type can hold. Blocks are decoded by the
`gguf` package, or by ggml where that has no decoder. Types that the reference quantizes only with importance get
importance 1 there. A mark `!` stands at what misses its goal.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import gguf
import numpy as np

import quant
from benchmarks import ggml
from benchmarks.weights import Matrix, Weight, random_importance, sets
from quant.types import QuantType

GRIDS = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS")
WHOLE = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")
SUPER = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
OTHER = ("Q8_0", "F16", "BF16", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4", "Q1_0", "Q2_0")
TYPES = (*SUPER, *WHOLE, *OTHER, *GRIDS)
# The reference looks at no importance, and neither does it say much for a rounded number.
UNWEIGHTED = ("Q8_0", "F16", "BF16")
TURNS = 7


class Goal(NamedTuple):
    """At least this speed, at most this error on a set and on their mean, as ratios to the reference."""

    speed: float
    error: float
    mean: float


def goal(type: str, weighted: bool) -> Goal:
    """What was set out to be reached."""
    if type in SUPER:
        return Goal(5 if type == "Q6_K" or (type == "Q3_K" and not weighted) else 10, 1, 0.97)
    if type in WHOLE:
        return Goal(10, 1, 1) if weighted else Goal(0.25, 0.97, 0.97)
    return Goal(5 if type in GRIDS else 1, 1, 1)


def speeds(type: QuantType, importance: Matrix | None) -> tuple[float, float]:
    """Millions of weights a second: ours, the reference's."""
    slow = type.name in GRIDS
    x = (np.random.default_rng(1).standard_normal((2048, 1024)) * 0.02).astype(np.float32)
    ours, theirs = x[: 256 if slow else 2048], x[: 32 if slow else 256]
    given = reference_importance(type, importance, 1024)
    ggml.prepare(type)
    quant.quantize(ours, type, importance, threads=1)
    best = [float("inf")] * 2
    for _ in range(TURNS):
        for side, action in enumerate(
            (lambda: quant.quantize(ours, type, importance, threads=1), lambda: ggml.quantize(theirs, type, given))
        ):
            start = time.thread_time()
            action()
            best[side] = min(best[side], time.thread_time() - start)
    return ours.size / best[0] / 1e6, theirs.size / best[1] / 1e6


def reference_importance(type: QuantType, importance: Matrix | None, columns: int) -> Matrix | None:
    """What the reference gets: importance 1 where it can do nothing without."""
    if importance is None and type in ggml.NEED_IMPORTANCE:
        return np.ones(columns, np.float32)
    return importance


def decode(blocks: np.ndarray, type: QuantType, columns: int) -> Matrix:
    """By a decoder that is not ours."""
    try:
        return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[type.name]).reshape(-1, columns)
    except (NotImplementedError, KeyError):
        return ggml.dequantize(blocks, type, columns)


def error(weight: Weight, blocks: np.ndarray, type: QuantType, importance: Matrix | None) -> float:
    """Σ w·(x − x̂)²."""
    square = (weight.values - decode(blocks, type, weight.values.shape[1])).astype(np.float64) ** 2
    return float((square if importance is None else square * importance).sum())


def ratio(weights: list[Weight], type: QuantType, kind: str) -> float | None:
    """Our error by the reference's, on those matrices that the type can hold and whose importance is known."""

    def both(weight: Weight) -> tuple[float, float]:
        columns = weight.values.shape[1]
        importance = {"none": None, "random": random_importance(columns), "real": weight.importance}[kind]
        ours = quant.quantize(weight.values, type, importance, threads=1)
        given = reference_importance(type, importance, columns)
        theirs = ggml.quantize(weight.values, type, given)
        return error(weight, ours, type, importance), error(weight, theirs, type, importance)

    fit = [
        weight
        for weight in weights
        if weight.values.shape[1] % type.block == 0 and (kind != "real" or weight.importance is not None)
    ]
    if not fit:
        return None
    ggml.prepare(type)
    with ThreadPoolExecutor() as pool:
        ours, theirs = np.array(list(pool.map(both, fit))).sum(axis=0)
    return 1.0 if ours == theirs == 0 else float(ours / theirs)


def measure(type: QuantType, data: dict[str, list[Weight]]) -> Iterator[dict[str, Any]]:
    """Rows of the table: one for each kind of importance."""
    for kind in ("none",) if type.name in UNWEIGHTED else ("none", "random", "real"):
        importance = None if kind == "none" else random_importance(1024)
        errors = {name: ratio(weights, type, kind) for name, weights in data.items()}
        known = [value for value in errors.values() if value is not None]
        if not known:
            continue
        ours, theirs = speeds(type, importance)
        wanted = goal(type.name, kind != "none")
        yield {
            "type": type.name,
            "importance": kind,
            "ours": ours,
            "reference": theirs,
            "speed": ours / theirs,
            "errors": errors,
            "mean": sum(known) / len(known),
            "goal": wanted._asdict(),
            "speed_reached": ours / theirs >= wanted.speed,
            "error_reached": max(known) <= wanted.error + 5e-4 and sum(known) / len(known) <= wanted.mean + 5e-4,
        }


COMPILE = """
import sys, time, pathlib
from quant.kernels import blocks
from server.pulls.compiling import warm
blocks.configure(pathlib.Path(sys.argv[1]))
start, counts = time.perf_counter(), [0]
warm(sys.argv[2].split(","), int(sys.argv[3]), lambda done, total: counts.append(total))
print(time.perf_counter() - start, counts[-1])
"""


def compilation() -> list[dict[str, Any]]:
    """Seconds and kernels compiled by a puller with one process and with three, and where the cache has them."""
    rows = []
    levels = {
        "Q8_0": ("Q8_0",),
        "Q4_K_M": ("Q4_K", "Q6_K"),
        "IQ3_M": ("IQ3_S", "Q4_K", "Q6_K"),
        "IQ1_S": ("IQ1_S", "IQ2_XXS", "Q5_K"),
    }
    for label, types in levels.items():
        for processes in (1, 3):
            with tempfile.TemporaryDirectory() as folder:
                for cache in ("empty", "full"):
                    command = [sys.executable, "-c", COMPILE, folder, ",".join(types), str(processes)]
                    seconds, count = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
                    row = {"kernels": label, "processes": processes, "cache": cache}
                    rows.append(row | {"seconds": float(seconds), "compiled": int(count)})
    return rows


def table(rows: Iterator[dict[str, Any]], names: list[str], write: Callable[[str], object]) -> list[dict[str, Any]]:
    """Write each row when it is there."""
    heads = "".join(f"{name:>11}" for name in names)
    write(
        f"{'type':<8}{'importance':<11}{'ours M/s':>9}{'ggml M/s':>9}{'speed':>9} {'goal':>6} │ error{heads}{'mean':>8}"
    )
    done = []
    for row in rows:
        errors = "".join(f"{value:>11.4f}" if value is not None else f"{'-':>11}" for value in row["errors"].values())
        fast, close = ("" if row[f"{what}_reached"] else "!" for what in ("speed", "error"))
        write(
            f"{row['type']:<8}{row['importance']:<11}{row['ours']:>9.1f}{row['reference']:>9.1f}"
            f"{row['speed']:>7.2f}×{fast or ' '} {row['goal']['speed']:>5g}× │      {errors}{row['mean']:>8.4f}{close}"
        )
        done.append(row)
    return done


def main() -> None:
    """Run from the command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="every 16th row only, and no compilation")
    options.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    options.add_argument("--types", default=",".join(TYPES), help="comma-separated")
    given = options.parse_args()
    warnings.filterwarnings("ignore", "overflow|invalid value|divide by zero", RuntimeWarning)
    write: Callable[[str], object] = (lambda line: None) if given.json else (lambda line: print(line, flush=True))
    costs = [] if given.quick else compilation()
    for cost in costs:
        label = f"compile {cost['kernels']:<8} {cost['processes']} processes, cache {cost['cache']:<6}"
        write(f"{label} {cost['seconds']:6.2f} s, {cost['compiled']} kernels")
    data = sets(16 if given.quick else 1)
    types = [QuantType.by_name(name) for name in given.types.split(",")]
    rows = table((row for type in types for row in measure(type, data)), list(data), write)
    missed = [row for row in rows if not (row["speed_reached"] and row["error_reached"])]
    write(f"{len(rows) - len(missed)} of {len(rows)} rows reach their goals")
    if given.json:
        print(json.dumps({"compilation": costs, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
