"""Cuts of a model beside the plain ladder of its levels, in one run: bytes, KL divergence, seconds.

    python -m benchmarks.compress [SOURCE] [--levels Q8_0,…] [--windows N] [--layer 14336x4096]

SOURCE is a folder with weights of a Llama, the demo by default. The ladder is made by the streaming pass. The cuts are
the layer that is missed least, five sixths and two thirds of the width, each at every level; and experts without work,
of a mixture that is made of SOURCE. Divergences are from the weights at F32, on lm's held-out text. The last column is
what the ladder has at the same bytes, log-linear between its levels. With `--layer` channels of one made-up layer are
chosen, and seconds and memory are printed.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import mixture
from quant.convert.gguf.source import plan_gguf
from quant.convert.planning import plan_model
from quant.cuts.channels import choose
from quant.cuts.experts import Experts
from quant.cuts.layers import without_layers
from quant.cuts.steps import kept_of, width_of
from quant.cuts.width import narrowed
from quant.plan import ModelPlan
from registry.sources.opening import DEMO
from runtime.llama.library import usable_threads
from runtime.meter import passages
from runtime.meter.kept import KeptWindow, compare, record
from runtime.meter.narrowing import NarrowTarget, narrow_layers
from runtime.meter.surveying import survey_experts, survey_layers
from runtime.meter.windows import WindowReader
from tests.converting import write
from tests.quant.support import Folder

WINDOW, LEARN = 256, 8
READING = {"window": WINDOW, "threads": usable_threads(), "tell": lambda done, total: None}


class Measured:
    """A whole model in F32 below `folder`, what it thinks of the held-out text, and its ladder."""

    def __init__(self, source: Path, folder: Path, windows: int) -> None:
        self.folder, self.path = folder, folder / "whole" / "model.gguf"
        self.path.parent.mkdir(parents=True)
        write(plan_model(Folder(source)), "F32", Folder(source).stream, self.path)
        self.files = Folder(self.path.parent)
        self.plan = plan_gguf(self.files)
        reader = WindowReader(self.path, WINDOW, usable_threads())
        texts = reader.windows(passages.own("held"), windows).values()
        self.kept: list[KeptWindow] = [record(tokens, reader.logits(tokens)) for tokens in texts]
        self.ladder: list[tuple[int, float]] = []

    def divergence(self, plan: ModelPlan, level: str) -> tuple[int, float]:
        """Bytes of a plan at a level, and its mean divergence."""
        path = self.folder / "made.gguf"
        write(plan, level, self.files.stream, path)
        reader = WindowReader(path, WINDOW, usable_threads())
        found = [compare(kept, reader.logits(kept.tokens)).divergence.mean() for kept in self.kept]
        return path.stat().st_size, float(np.mean(found))

    def print_row(self, what: str, plan: ModelPlan, levels: list[str], *, ladder: bool = False) -> None:
        """A row for each level."""
        for level in levels:
            size, found = self.divergence(plan, level)
            if ladder:
                self.ladder = sorted([*self.ladder, (size, found)])
            sizes, bars = zip(*self.ladder, strict=True)
            bar = float(np.exp(np.interp(np.log(size), np.log(sizes), np.log(np.maximum(bars, 1e-12)))))
            beyond = "" if sizes[0] <= size <= sizes[-1] else " (beyond the ladder)"
            print(f"{what:24} {level:8} {size / 1e6:8.2f} MB  KL {found:.5f}  ladder {bar:.5f}{beyond}", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", type=Path, default=DEMO)
    parser.add_argument("--levels", default="Q8_0,Q6_K,Q4_K_M,Q3_K_M,Q2_K")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--layer")
    asked = parser.parse_args()
    if asked.layer:
        _layer(*map(int, asked.layer.split("x")))
        return
    with tempfile.TemporaryDirectory() as text:
        folder, levels = Path(text), asked.levels.split(",")
        whole = Measured(asked.source, folder, asked.windows)
        whole.print_row("ladder", whole.plan, levels, ladder=True)
        (gone,) = survey_layers(whole.path, passages.own("calibration"), count=1, windows=2, **READING)
        whole.print_row(f"without layer {gone.layer}", without_layers(whole.plan, [gone.layer]), levels)
        width = width_of(whole.plan)
        for keep in sorted({kept_of(width, share) for share in (5 / 6, 2 / 3)}, reverse=True):
            channels = folder / str(keep)
            channels.mkdir()
            target = NarrowTarget(channels, keep)
            layers = narrow_layers(whole.path, passages.own("calibration"), target, windows=LEARN, **READING)
            seconds = sum(each.seconds for each in layers) / len(layers)
            print(f"width {target.keep} of {width}: {[each.dead for each in layers]} dead, {seconds:.2f} s a layer")
            whole.print_row(f"width {target.keep}", narrowed(whole.plan, channels), levels)
        planted = mixture.make(asked.source, folder / "mixture")
        mixed = Measured(folder / "mixture", folder / "of-experts", asked.windows)
        found = survey_experts(mixed.path, passages.own("calibration"), windows=LEARN, **READING)
        experts = Experts(mixed.plan)
        scores, counts = (dict(zip(found.layers, each, strict=True)) for each in (found.scores, found.counts))
        kept = experts.chosen(experts.count - len(planted), scores, counts)
        same = all(sorted(set(range(experts.count)) - set(each)) == planted for each in kept.values())
        mixed.print_row("mixture, ladder", mixed.plan, levels, ladder=True)
        mixed.print_row(f"idle found: {same}", experts.cut(mixed.plan, kept), ["F32"])


def _layer(width: int, rows: int) -> None:
    random = np.random.default_rng(5)
    x = random.standard_normal((4096, width), np.float32)
    gram, weights = x.T @ x, random.standard_normal((rows, width), np.float32)
    begun = time.monotonic()
    found = choose(gram, weights, kept_of(width, 0.8))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{len(found.kept)} of {width} channels: {time.monotonic() - begun:.0f} s, {memory:.2f} GB")


if __name__ == "__main__":
    main()
