"""Error feedback against llama.cpp's quantizer with the same statistics, at equal bytes, in one run.

    python -m benchmarks.feedback [SOURCE] [--types Q4_K,…] [--levels Q4_K_M,…] [--learn N] [--windows N]
        [--calibration FILE] [--held FILE] [--budget MiB]

SOURCE is a folder with weights, the demo by default. For each type all matrices of the layers have it, and all other
tensors stay as they are. Importance is the diagonal of the Gram matrices that error feedback has, so both sides know
the same text: `--learn` windows of lm's calibration text, or of a file. The divergence is measured on lm's held-out
text against the weights at F32; the error of a ratio is paired over windows. Named levels are made by the streaming
pass, as they are served. A mark `!` stands at what misses its goal.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import ggml
from benchmarks.quality import WINDOW, measured, ratio, text_of
from quant.convert.planning import plan_model
from quant.feedback.matrix import quantize
from quant.gguf.header import read_file
from quant.gguf.writer import Writer, encode_header, layout
from quant.importance import Importance, InputSquares
from quant.types import QuantType, Tensor
from registry.names import parse
from registry.net.network import Network
from registry.sources.opening import DEMO, open_source
from runtime.llama.library import usable_threads
from runtime.meter import passages
from runtime.meter.inputs import InputGrams
from runtime.meter.kept import KeptWindow, record
from runtime.meter.windows import WindowReader
from tests.converting import write

TYPES = "Q2_K,Q3_K,Q4_K,Q5_K,Q6_K,IQ4_XS,IQ4_NL,Q4_0,Q4_1,Q5_0,Q5_1"
# The most divergence, as a ratio to the peer.
GOALS = {"Q2_K": 0.42, "Q3_K": 0.42, "Q4_K": 0.42, "Q5_K": 0.45, "Q6_K": 0.4, "IQ4_XS": 0.45, "IQ3_S": 0.45}
GOAL = 0.6
Blocks = Callable[[str, NDArray[np.float32]], NDArray[np.uint8]]


def main() -> None:
    """Print a line for each type and level."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default=str(DEMO))
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--levels", default="")
    parser.add_argument("--learn", type=int, default=32)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--held", type=Path)
    parser.add_argument("--budget", type=int, default=1024)
    asked = parser.parse_args()
    source = open_source(parse(asked.source), "", Network())
    plan = plan_model(source)
    with tempfile.TemporaryDirectory() as folder:
        whole, target = Path(folder) / "whole.gguf", Path(folder) / "made.gguf"

        def convert(level: str, path: Path, **statistics: Any) -> None:
            write(plan, level, lambda shard: [source.read(shard, 0, source.size(shard))], path, **statistics)

        convert("F32", whole)
        names = [tensor.name for tensor in plan.tensors]
        grams, importance = collect(whole, text_of(asked.calibration, "calibration"), names, asked)
        reader = WindowReader(whole, WINDOW, usable_threads())
        windows = reader.windows(text_of(asked.held, "held"), asked.windows)
        kept = [record(tokens, reader.logits(tokens)) for tokens in windows.values()]
        print("type      llama.cpp with importance: KL   without   error feedback: KL, ratio; seconds for 10⁶ weights")
        for name in filter(None, asked.types.split(",")):
            compare_type(name, whole, target, grams, importance, kept)
        for level in filter(None, asked.levels.split(",")):
            found = []
            for statistics in ({}, {"importance": importance}, {"feedback": grams, "importance": importance}):
                convert(level, target, **statistics)
                found.append(measured(target, kept))
            plain, weighed, fed = found
            print(
                f"{level:9} lm: {plain.mean():.5f}   importance {ratio(weighed, plain)}   feedback {ratio(fed, plain)}",
                flush=True,
            )
    print(f"most memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")


def collect(
    whole: Path, text: passages.Passage, names: list[str], asked: argparse.Namespace
) -> tuple[InputGrams, Importance]:
    """Collect and factor all Gram matrices, print how long that takes; importance is what their diagonals say."""
    grams = InputGrams(whole, text, names, WINDOW, asked.learn, usable_threads(), asked.budget << 20)
    seconds, squares = [0.0, 0.0], {}
    for name in names:
        begin = time.perf_counter()
        gram = grams.gram(name)
        middle = time.perf_counter()
        if gram is not None:
            squares[name] = InputSquares(gram.diagonal()[None].astype(np.float64), np.array([1.0]))
            grams.factor(name)
        seconds = [seconds[0] + middle - begin, seconds[1] + time.perf_counter() - middle]
    print(
        f"{asked.learn * WINDOW} tokens, {grams.passes} passes: {seconds[0]:.1f} s; factors: {seconds[1]:.1f} s",
        flush=True,
    )
    return grams, Importance(squares)


def compare_type(
    name: str, whole: Path, target: Path, grams: InputGrams, importance: Importance, kept: list[KeptWindow]
) -> None:
    """Make a model with layers of one type in three ways, and print the line."""
    type, spent = QuantType.by_name(name), [0.0, 0]

    def theirs(tensor: str, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
        return ggml.quantize(rows, type, importance.weights(tensor, rows.shape[1]))

    def ours(tensor: str, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
        factor = grams.factor(tensor)
        assert factor is not None
        start = time.thread_time()
        made = quantize(rows, type, factor)
        spent[0] += time.thread_time() - start
        spent[1] += rows.size
        return made

    ways: tuple[Blocks, ...] = (theirs, lambda tensor, rows: ggml.quantize(rows, type), ours)
    found = []
    for way in ways:
        replaced(whole, target, type, importance.squares, way)
        found.append(measured(target, kept))
    peer, plain, own = found
    print(
        f"{name:9} {peer.mean():.5f}   {ratio(plain, peer)}   {own.mean():.5f} {ratio(own, peer)}"
        f"{' !' if own.mean() > GOALS.get(name, GOAL) * peer.mean() else ''}; {spent[0] / spent[1] * 1e6:.2f} s",
        flush=True,
    )


def replaced(whole: Path, target: Path, type: QuantType, names: Mapping[str, Any], way: Blocks) -> None:
    """Write the model with the named matrices as blocks of a type."""
    header = read_file(whole)
    tensors = [Tensor(each.name, each.shape, type if each.name in names else each.type) for each in header.tensors]
    placed = layout(tensors)
    with whole.open("rb") as source, target.open("wb") as out:
        out.write(encode_header(header.metadata, placed, header.kinds))
        writer = Writer(out, placed)
        for each in header.tensors:
            source.seek(header.data_offset + each.offset)
            data: Any = source.read(each.nbytes)
            if each.name in names:
                data = way(each.name, np.frombuffer(data, np.float32).reshape(each.shape[::-1]).copy())
            writer.append(memoryview(data).cast("B"))
        writer.finish()


if __name__ == "__main__":
    main()
