"""Files of lm and of llama.cpp's quantizer, made of the same weights: how far each is from them, in one run.

    python -m benchmarks.quality [SOURCE] [--levels Q2_K,Q4_K_M] [--learn N] [--windows N] [--calibration FILE]
        [--held FILE] [--importance FILE] [--save FILE]

SOURCE is a folder with weights, the demo by default. Both quantize without importance, and with the same: squares of
inputs, summed over `--learn` windows of lm's calibration text or another one, or those in a file of `llama-imatrix`.
`--save` writes them as such a file, in the older form where its name ends with `.dat`. Unless they come from a file, lm
also feeds errors back, and makes mixes of the level's bytes by measured sensitivity, with importance and with feedback.

The divergence is measured on lm's held-out text, or another one, against the weights at F32, as files are served: with
8-bit activations on both sides. `floor` is the divergence with the layers' matrices in F16 and all others as in the
level; it is subtracted where a column says `over floor`. Ratios are to llama.cpp with importance, a mix's also to lm's
file with the level's own types. Errors of ratios are paired over windows. A mark `!` stands at what misses its goal.
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from quant.convert.planning import plan_model
from quant.feedback.stored import StoredGrams
from quant.gguf.header import read_file
from quant.gguf.writer import Writer, encode_header, layout
from quant.importance import Importance
from quant.levels.budget import assignment, is_mixed
from quant.levels.harms import MeasuredHarms
from quant.plan import ModelPlan
from quant.types import QuantType, Tensor
from registry.names import parse
from registry.net.network import Network
from registry.sources.opening import DEMO, Source, open_source
from runtime.llama.library import usable_threads
from runtime.meter import passages
from runtime.meter.collecting import SquareCollector
from runtime.meter.kept import KeptWindow, compare, record
from runtime.meter.learning import DONE, GRAMS_FILE, learn_grams
from runtime.meter.sensitivity import learn_harms
from runtime.meter.windows import WindowReader
from tests.converting import write

# Numbers of levels for `llama_model_quantize` (`enum llama_ftype` in llama.h).
LEVELS = {"Q2_K": 10, "Q3_K_M": 12, "Q4_K_M": 15, "Q5_K_M": 17, "Q6_K": 18, "IQ3_S": 26, "IQ4_XS": 30}
WINDOW = 512
# The most divergence of lm's files, as a ratio to the peer with importance, the floor subtracted for `best`; then that
# of mixes: by importance to the same peer, with error feedback to the level's own types.
GOALS = {"quick": 1.0, "importance": 1.0, "best": 0.6, "mix": 0.7, "best mix": 1.0}
BEST_MIX = 0.82
Divergences = NDArray[np.float64]


@dataclass(frozen=True)
class Learned:
    """What lm quantizes by: nothing, or importance, Gram matrices, and harms for a mix."""

    importance: Importance | None = None
    feedback: StoredGrams | None = None
    harms: MeasuredHarms | None = None


def main() -> None:
    """Print some lines for each level."""
    asked = arguments()
    source = open_source(parse(asked.source), "", Network())
    plan = plan_model(source)
    with tempfile.TemporaryDirectory() as folder:
        whole, target = Path(folder) / "whole.gguf", Path(folder) / "made.gguf"
        convert(source, plan, "F32", whole)
        ways = learned(whole, asked)
        importance = ways["importance"].importance
        assert importance is not None
        if asked.save:
            importance.write_old(asked.save) if asked.save.suffix == ".dat" else importance.write(asked.save)
        reader = WindowReader(whole, WINDOW, usable_threads())
        windows = reader.windows(text_of(asked.held, "held"), asked.windows)
        kept = [record(tokens, reader.logits(tokens)) for tokens in windows.values()]
        for level in asked.levels.split(","):
            quantize(whole, target, level, None)
            bare = measured(target, kept)
            quantize(whole, target, level, importance)
            peer, size = measured(target, kept), target.stat().st_size
            with_floor(target, whole, Path(folder) / "floor.gguf", importance)
            floor = measured(Path(folder) / "floor.gguf", kept)
            print(f"{level}: llama.cpp with importance {cell(peer)}, without {ratio(bare, peer)}; floor {cell(floor)}")
            found: dict[str, Divergences] = {}
            for way, means in ways.items():
                if means.harms and not is_mixed(level):
                    continue
                convert(source, plan, level, target, means)
                found[way] = measured(target, kept)
                print(line(way, found, peer, floor, bare, target.stat().st_size / size), flush=True)
                if means.harms:
                    print(f"    {assignment(plan, level, means.harms).reason}", flush=True)


def arguments() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default=str(DEMO))
    parser.add_argument("--levels", default=",".join(LEVELS))
    parser.add_argument("--learn", type=int, default=32)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--held", type=Path)
    parser.add_argument("--importance", type=Path)
    parser.add_argument("--save", type=Path)
    return parser.parse_args()


def learned(whole: Path, asked: argparse.Namespace) -> dict[str, Learned]:
    """The ways of quantizing by name, and how long their statistics take."""
    if asked.importance:
        return {"quick": Learned(), "importance": Learned(Importance.read(asked.importance))}
    text, folder = text_of(asked.calibration, "calibration"), whole.parent
    importance = learn(whole, text, asked.learn)
    for name, experts in importance.unrouted().items():
        print(f"{name}: no token was routed to the experts {experts}")
    importance.write(folder / DONE)
    how: dict[str, Any] = {"window": WINDOW, "threads": usable_threads(), "tell": lambda done, total: None}
    seconds = [time.perf_counter()]
    learn_grams(whole, text, folder, windows=asked.learn, **how)
    harms = []
    for fed in (False, True):
        seconds.append(time.perf_counter())
        harms.append(learn_harms(whole, text, folder, fed=fed, **how))
    seconds.append(time.perf_counter())
    grams, plain, fed_back = np.diff(seconds)
    print(f"Gram matrices: {grams:.1f} s; harms: {plain:.1f} s by importance, {fed_back:.1f} s more for feedback")
    feedback = StoredGrams(folder / GRAMS_FILE, usable_threads())
    return {
        "quick": Learned(),
        "importance": Learned(importance),
        "best": Learned(importance, feedback),
        "mix": Learned(importance, None, harms[0]),
        "best mix": Learned(importance, feedback, harms[1]),
    }


def line(
    way: str, found: dict[str, Divergences], peer: Divergences, floor: Divergences, bare: Divergences, bytes_: float
) -> str:
    """The figures of a way, with marks at missed goals."""
    own = found[way]
    over, over_bare = ((own - floor).mean() / (each - floor).mean() for each in (peer, bare))
    missed = over > GOALS[way] if way == "best" else own.mean() > GOALS[way] * peer.mean()
    text = f"  {way:10} {cell(own)}: {ratio(own, peer)}{' !' if missed else ''}; bytes × {bytes_:.4f}"
    text += f"; over floor {over:.3f}, of the peer without importance {over_bare:.3f}"
    if way.endswith("mix"):
        named = found["best" if way == "best mix" else "importance"]
        mark = " !" if way == "best mix" and own.mean() > BEST_MIX * named.mean() else ""
        text += f"; of the level's own types {ratio(own, named)}{mark}"
    return text


def cell(found: Divergences) -> str:
    """A mean with its standard error."""
    return f"{found.mean():.5f} ± {found.std(ddof=1) / len(found) ** 0.5:.5f}"


def ratio(own: Divergences, peer: Divergences) -> str:
    """The ratio of means with its error, paired over windows."""
    found = own.mean() / peer.mean()
    error = (own - found * peer).std() / peer.mean() / max(1, len(own) - 1) ** 0.5
    return f"{found:.3f} ± {error:.3f}"


def with_floor(made: Path, whole: Path, target: Path, importance: Importance) -> None:
    """Write the model of `made` with the matrices of its layers in F16, as `whole` has them."""
    header, original = read_file(made), read_file(whole)
    places = {tensor.name: original.data_offset + tensor.offset for tensor in original.tensors}
    tensors = [
        Tensor(each.name, each.shape, QuantType.F16 if each.name in importance.squares else each.type)
        for each in header.tensors
    ]
    placed, data, floats = layout(tensors), np.memmap(made, np.uint8, "r"), np.memmap(whole, np.uint8, "r")
    with target.open("wb") as out:
        out.write(encode_header(header.metadata, placed, header.kinds))
        writer = Writer(out, placed)
        for each in header.tensors:
            begin, size = header.data_offset + each.offset, each.nbytes
            if each.name in importance.squares:
                begin, size = places[each.name], 4 * each.rows * each.columns
                values = floats[begin : begin + size].view("<f4").astype("<f2")
                writer.append(memoryview(values).cast("B"))
            else:
                writer.append(memoryview(np.ascontiguousarray(data[begin : begin + size])))
        writer.finish()


def convert(source: Source, plan: ModelPlan, level: str, path: Path, means: Learned = Learned()) -> None:
    """Write lm's file."""
    pieces = {shard: [source.read(shard, 0, source.size(shard))] for shard in plan.shards}
    write(plan, level, pieces.__getitem__, path, **vars(means))


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


def measured(file: Path, kept: list[KeptWindow]) -> Divergences:
    """The mean divergence of each window."""
    reader = WindowReader(file, WINDOW, usable_threads())
    return np.array([compare(window, reader.logits(window.tokens)).divergence.mean() for window in kept])


if __name__ == "__main__":
    main()
