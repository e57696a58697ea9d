"""How much of llama.cpp's speed the engine passes on, as ratios of runs made one after another.

    python -m benchmarks.engine MODEL.gguf [--threads 2] [--rounds 3] [--only one,eight,…]

Best on the 1.1 B of `benchmarks.synthetic` at Q4_K_M, on a machine with nothing else to do. The opponent is a bare loop
over the same library with the same sampler chain, in a process of its own: no queue, no text, no messages.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from array import array
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from runtime import messages as m
from runtime.context import Context, Shape
from runtime.hardware import usable_cpus
from runtime.llama import Model
from runtime.sampling import Sampler
from tests.runtime.working import Worker, working

PROMPT = "It was a dark night, and the wind blew from the sea. The old man sat by the fire and said: "
# Token 300 of most byte-level vocabularies is a plain one: random weights would write bytes that make no text.
SAMPLING = m.Sampling(logit_bias={300: 1e6})
POOL = 8192


class Bench:
    """One model file and how to run it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.path: Path = options.model
        self.threads: int = options.threads
        self.rounds: int = options.rounds
        self.tokens: int = options.tokens

    def load(self, **options: Any) -> m.Load:
        """The first frame; `options` replace defaults."""
        defaults = {"context": POOL, "sequences": 8, "threads": self.threads, "queue": 64}
        return m.Load(str(self.path), **{**defaults, **options})

    def submit(self, prompt: str, tokens: int | None = None) -> m.Submit:
        """A prompt that is answered with a fixed number of tokens."""
        return m.Submit(0, prompt=prompt, sampling=SAMPLING, limits=m.Limits(max_tokens=tokens or self.tokens))

    @asynccontextmanager
    async def worker(self, **options: Any) -> AsyncIterator[Worker]:
        """A worker that has answered once."""
        async with working(self.load(**options)) as worker:
            await worker.ask(self.submit("Warm", 8))
            yield worker

    def bare(self, streams: int) -> float:
        """Tokens per second of the bare loop."""
        code = f"from benchmarks.engine import bare; bare({str(self.path)!r}, {self.threads}, {streams}, {self.tokens})"
        return float(json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout))


def bare(path: str, threads: int, streams: int, tokens: int) -> None:
    """Prompt, then `tokens` steps of `streams` rows, sampled in C; prints tokens per second of the steps."""
    model = Model(Path(path))
    context = Context(model, Shape(POOL, 16, 8, threads))
    ids = model.tokenize(PROMPT, special=False, add=True)
    samplers = [Sampler(model, SAMPLING, number, POOL) for number in range(streams)]
    last = array("i", [0] * streams)
    for number, sampler in enumerate(samplers):
        context.put_prompt(0, memoryview(ids), 0, number, 1)
        context.decode(len(ids))
        last[number] = sampler.sample(context.handle, len(ids) - 1)
    started = time.perf_counter()
    for step in range(tokens):
        for number in range(streams):
            context.put_token(number, last[number], len(ids) + step, number)
        context.decode(streams)
        for number, sampler in enumerate(samplers):
            last[number] = sampler.sample(context.handle, number)
    print(json.dumps(streams * tokens / (time.perf_counter() - started)))


async def stream(worker: Worker, request: m.Submit, started: asyncio.Event | None = None) -> list[float]:
    """When the request was sent, and when each token came; `started` is set at the first."""
    times = [time.perf_counter()]
    async for frame in worker.frames(request):
        if isinstance(frame, m.Delta):
            times += [time.perf_counter()] * frame.tokens
            if started:
                started.set()
        if isinstance(frame, m.Failed):
            raise SystemExit(frame.message)
    return times


def rate(streams: list[list[float]]) -> float:
    """Tokens per second from the first token to the last, of all together."""
    return sum(len(times) - 2 for times in streams) / (max(t[-1] for t in streams) - max(t[1] for t in streams))


def gaps(times: list[float]) -> list[float]:
    """Seconds between tokens, the shortest first."""
    return sorted(b - a for a, b in pairwise(times[1:]))


async def one(bench: Bench) -> None:
    """One stream against the bare loop."""
    ratios, rates = [], []
    for _ in range(bench.rounds):
        alone = bench.bare(1)
        async with bench.worker() as worker:
            rates.append(rate([await stream(worker, bench.submit(PROMPT))]))
        ratios.append(rates[-1] / alone)
    report(
        "one stream against the bare loop", statistics.median(ratios), "≥ 0.97", f"{statistics.median(rates):.1f} tok/s"
    )


async def eight(bench: Bench) -> None:
    """Eight streams that come at once."""
    ratios, rates = [], []
    for _ in range(bench.rounds):
        alone = bench.bare(8)
        async with bench.worker() as worker:
            jobs = [stream(worker, bench.submit(f"{i}. {PROMPT}")) for i in range(8)]
            streams = await asyncio.gather(*jobs)
        rates.append(sum(len(times) - 2 for times in streams) / statistics.mean(t[-1] - t[1] for t in streams))
        ratios.append(rates[-1] / alone)
    report(
        "eight streams against the bare loop",
        statistics.median(ratios),
        "≥ 0.95",
        f"{statistics.median(rates):.1f} tok/s",
    )


async def prefix(bench: Bench) -> None:
    """A newcomer whose prompt a running answer has computed."""
    text = PROMPT * 30
    ratios = []
    for _ in range(bench.rounds):
        async with bench.worker() as worker:
            cold = await stream(worker, bench.submit(f"Cold. {text} Why?", 2))
            running = worker.frames(bench.submit(f"{text} And then?", 1000))
            async for frame in running:
                if isinstance(frame, m.Delta):
                    break
            warm = await stream(worker, bench.submit(f"{text} Why?", 2))
        ratios.append((warm[1] - warm[0]) / (cold[1] - cold[0]))
    report("first token when a running answer holds the prefix, against cold", statistics.median(ratios), "≤ 0.2")


async def gap(bench: Bench) -> None:
    """What a long prompt does to a running answer, and the other way round."""
    text = PROMPT * 42
    stretched, slowed = [], []
    for _ in range(bench.rounds):
        async with bench.worker() as worker:
            alone = await stream(worker, bench.submit(f"Alone. {text}", 2))
            usual = gaps(await stream(worker, bench.submit("Usual.", 60)))
            started = asyncio.Event()
            running = asyncio.create_task(stream(worker, bench.submit("Running.", 400), started))
            await started.wait()
            newcomer = await stream(worker, bench.submit(f"New. {text}", 2))
            times = [t for t in await running if newcomer[0] <= t <= newcomer[1]]
        stretched.append(gaps([0.0, *times])[int((len(times) - 1) * 0.99)] / statistics.median(usual))
        slowed.append((newcomer[1] - newcomer[0]) / (alone[1] - alone[0]))
    report("p99 gap while a 900-word prompt comes in, against the usual one", statistics.median(stretched), "≤ 5")
    report("first token of that prompt, against alone", statistics.median(slowed), "≤ 2")


async def parked(bench: Bench) -> None:
    """What others' conversations in the cache cost."""
    ratios = []
    for _ in range(bench.rounds):
        async with bench.worker() as worker:
            empty = rate([await stream(worker, bench.submit("Empty."))])
            for i in range(4):
                await stream(worker, bench.submit(f"{i} {PROMPT * 42}", 1))
            ratios.append(rate([await stream(worker, bench.submit("Half full."))]) / empty)
    report("speed with the pool half full of parked sequences", statistics.median(ratios), "≥ 0.97")


async def two(bench: Bench) -> None:
    """Two workers."""
    ratios = []
    for _ in range(bench.rounds):
        async with bench.worker() as first, bench.worker() as second:
            alone = rate([await stream(first, bench.submit(PROMPT))])
            both = await asyncio.gather(*(stream(worker, bench.submit(PROMPT)) for worker in (first, second)))
            ratios.append(sum(rate([times]) for times in both) / alone)
    report("two models at once, together, against one alone", statistics.median(ratios), "≥ 0.8")


async def start(bench: Bench) -> None:
    """From nothing to the first token."""
    times = []
    for _ in range(bench.rounds):
        began = time.perf_counter()
        async with working(bench.load()) as worker:
            loaded = time.perf_counter() - began
            await stream(worker, bench.submit("Once", 1))
            times.append((time.perf_counter() - began, loaded))
    total, loaded = map(statistics.median, zip(*times, strict=True))
    print(f"start to first token {total:.2f} s, of which loading {loaded:.2f} s")


def report(what: str, value: float, goal: str, more: str = "") -> None:
    """One line of the table."""
    print(f"{what:70} {value:6.2f}  (goal {goal})  {more}", flush=True)


ALL: dict[str, Callable[[Bench], Coroutine[Any, Any, None]]] = {
    f.__name__: f for f in (start, one, eight, prefix, gap, parked, two)
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--only", default=",".join(ALL))
    options = parser.parse_args()
    for name in options.only.split(","):
        asyncio.run(ALL[name](Bench(options)))


if __name__ == "__main__":
    main()
