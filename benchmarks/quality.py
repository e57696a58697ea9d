"""Files of lm and of llama.cpp's quantizer, made of the same weights: how far each is from them, in one run.

    python -m benchmarks.quality [SOURCE] [--levels Q2_K,Q4_K_M] [--learn N] [--windows N] [--calibration FILE]
        [--held FILE] [--importance FILE] [--save FILE]

SOURCE is a folder with weights, the demo by default. Both quantize without importance, and with the same: squares of
inputs, summed over `--learn` windows of lm's calibration text or another one, or those in a file of `llama-imatrix`.
`--save` writes them as such a file, in the older form where its name ends with `.dat`. The divergence is measured on
lm's held-out text, or another one, against the weights at F32. Ratios are to llama.cpp with importance; a mark `!`
stands at what misses its goal.
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import llama_cpp
import numpy as np

from quant.convert.planning import plan_model
from quant.gguf.header import read_file
from quant.importance import Importance
from quant.plan import ModelPlan
from registry.names import parse
from registry.net.network import Network
from registry.sources.opening import DEMO, Source, open_source
from runtime.llama.library import usable_threads
from runtime.meter import passages
from runtime.meter.collecting import SquareCollector
from runtime.meter.figures import figures
from runtime.meter.kept import KeptWindow, compare, record
from runtime.meter.windows import WindowReader
from tests.converting import write

# Numbers of levels for `llama_model_quantize` (`enum llama_ftype` in llama.h).
LEVELS = {"Q2_K": 10, "Q3_K_M": 12, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18, "IQ3_S": 26, "IQ4_XS": 30}
WINDOW = 512
# The most divergence of lm's file, as a ratio to the peer with importance: without importance, and with it.
QUICK, WEIGHTED = 1.0, 1.0


class Made(NamedTuple):
    """One way of quantizing: the divergence of its file in nats with its error, and the bytes."""

    divergence: float
    error: float
    size: int


def main() -> None:
    """Print a line for each level."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default=str(DEMO))
    parser.add_argument("--levels", default=",".join(LEVELS))
    parser.add_argument("--learn", type=int, default=32)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--held", type=Path)
    parser.add_argument("--importance", type=Path)
    parser.add_argument("--save", type=Path)
    asked = parser.parse_args()
    source = open_source(parse(asked.source), "", Network())
    plan = plan_model(source)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.gguf"
        convert(source, plan, "F32", whole)
        importance = (
            Importance.read(asked.importance)
            if asked.importance
            else learn(whole, text_of(asked.calibration, "calibration"), asked.learn)
        )
        for name, experts in importance.unrouted().items():
            print(f"{name}: no token was routed to the experts {experts}")
        if asked.save:
            importance.write_old(asked.save) if asked.save.suffix == ".dat" else importance.write(asked.save)
        reader = WindowReader(whole, WINDOW, usable_threads())
        windows = reader.windows(text_of(asked.held, "held"), asked.windows)
        kept = [record(tokens, reader.logits(tokens)) for tokens in windows.values()]
        print("level      lm: KL, with importance   llama.cpp: KL, with importance   lm / llama.cpp with importance")
        for level in asked.levels.split(","):
            target, ours, theirs = Path(folder) / "made.gguf", [], []
            for given in (None, importance):
                convert(source, plan, level, target, given)
                ours.append(measured(target, kept))
                quantize(whole, target, level, given)
                theirs.append(measured(target, kept))
            print(line(level, ours, theirs), flush=True)


def line(level: str, ours: list[Made], theirs: list[Made]) -> str:
    """The figures of a level, with marks at missed goals."""
    cells = [f"{each.divergence:.5f} ± {each.error:.5f}" for each in (*ours, *theirs)]
    ratios = [made.divergence / theirs[1].divergence for made in ours]
    marks = [
        f"{ratio:.3f}{'' if ratio <= goal else ' !'}" for ratio, goal in zip(ratios, (QUICK, WEIGHTED), strict=True)
    ]
    sizes = f"{ours[1].size / theirs[1].size:.4f}"
    return f"{level:8} {'  '.join(cells)}   quick {marks[0]}, importance {marks[1]}; bytes × {sizes}"


def convert(source: Source, plan: ModelPlan, level: str, path: Path, importance: Importance | None = None) -> None:
    """Write lm's file."""
    write(plan, level, lambda shard: [source.read(shard, 0, source.size(shard))], path, importance=importance)


def text_of(file: Path | None, kind: str) -> passages.Passage:
    """The text in a file, or lm's own of this kind."""
    return passages.Passage(file.name, file.read_text("utf-8")) if file else passages.own(kind)


def learn(file: Path, passage: passages.Passage, windows: int) -> Importance:
    """Collect importance, and print how fast that is beside plain prompt reading: the best window of each."""
    collector, threads = SquareCollector(read_file(file).tensors), usable_threads()
    plain, reader = WindowReader(file, WINDOW, threads), WindowReader(file, WINDOW, threads, collector)
    texts = reader.windows(passage, windows)
    best = [float("inf")] * 2
    for tokens in texts.values():
        start = time.perf_counter()
        reader.collect(tokens)
        collector.settle()
        best[0] = min(best[0], time.perf_counter() - start)
        start = time.perf_counter()
        plain.read(tokens)
        best[1] = min(best[1], time.perf_counter() - start)
    print(f"collecting: {best[1] / best[0]:.2f} × the speed of plain prompt reading ({len(texts)} windows)")
    return collector.importance(passage.name, len(texts), WINDOW)


def quantize(file: Path, target: Path, level: str, importance: Importance | None) -> None:
    """Write llama.cpp's file."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = LEVELS[level], usable_threads()
    keep = []
    if importance:
        table = (llama_cpp.llama_model_imatrix_data * (len(importance.squares) + 1))()
        for row, (name, (sums, counts)) in zip(table, importance.squares.items(), strict=False):
            means = np.ascontiguousarray(sums / np.maximum(counts, 1)[:, None], np.float32)
            keep.append(means)
            row.name, row.size = name.encode(), means.size
            row.data = means.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = table
    if llama_cpp.llama_model_quantize(str(file).encode(), str(target).encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp does not quantize {file} to {level}")


def measured(file: Path, kept: list[KeptWindow]) -> Made:
    """The divergence of a file."""
    reader = WindowReader(file, WINDOW, usable_threads())
    mean = figures([compare(window, reader.logits(window.tokens)) for window in kept])["mean"]
    return Made(mean["value"], mean["error"] or 0.0, file.stat().st_size)


if __name__ == "__main__":
    main()
