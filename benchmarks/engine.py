"""How much of llama.cpp's speed the engine passes on: ratios, in one run, to peers on the same file.

    python -m benchmarks.engine MODEL.gguf [--peers FOLDER] [--threads 2] [--rounds 3] [--only one,eight,…]

Best on the 1.1 B of `benchmarks.synthetic` at Q4_K_M, on a machine with nothing else to do. Peers are llama-server and
llama-batched-bench (`benchmarks/peers.py`), where FOLDER or PATH has them, and always a bare loop over the same library
with the same sampler chain (`benchmarks/loops.py`). Rows that compare with peers go through the daemon and HTTP, the
others speak with a worker.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import loops, peers
from benchmarks.loops import POOL, PROMPT, SAMPLING, SEQUENCES
from benchmarks.peers import Server
from runtime import messages as m
from runtime.machine.hardware import usable_cpus
from runtime.options import Limits
from tests.runtime.working import Worker, working

# The daemon's worker has no more room than models were trained for, which is 2,048 tokens for the synthetic one.
CONTEXT = 2048


class Bench:
    """One model file and how to run it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.path: Path = options.model.resolve()
        self.threads: int = options.threads
        self.rounds: int = options.rounds
        self.tokens: int = options.tokens
        self.llama_server = peers.find(options.peers, "llama-server")
        self.batched_bench = peers.find(options.peers, "llama-batched-bench")

    def submit(self, prompt: str, tokens: int | None = None) -> m.Submit:
        """A prompt that is answered with a fixed number of tokens."""
        return m.Submit(0, prompt=prompt, sampling=SAMPLING, limits=Limits(max_tokens=tokens or self.tokens))

    def load(self) -> m.Load:
        """A worker's first frame."""
        return m.Load(str(self.path), m.CacheConfig(POOL, SEQUENCES), self.threads, queue=64)

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[Worker]:
        """A worker that has answered once."""
        async with working(self.load()) as worker:
            await worker.ask(self.submit("Warm", 8))
            yield worker

    @asynccontextmanager
    async def servers(self) -> AsyncIterator[dict[str, Server]]:
        """Our daemon as `lm`, and llama-server, if it is there; both have answered once."""
        with ExitStack() as stack:
            home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lm-engine-")))
            _, ours = stack.enter_context(peers.daemon(self.path, home, self.threads, CONTEXT))
            found = {"lm": ours}
            if self.llama_server:
                peer = peers.llama_server(self.llama_server, self.path, self.threads, CONTEXT)
                found["llama-server"] = stack.enter_context(peer)
            for server in found.values():
                await asyncio.to_thread(peers.first_token, server)
            yield found


class Ratios:
    """Figures of several rounds; a line of the table is the median of the ratios of the same round."""

    def __init__(self) -> None:
        self._figures: dict[str, list[float]] = {}

    def note(self, name: str, figure: float) -> None:
        """The figure of `name` in this round."""
        self._figures.setdefault(name, []).append(figure)

    def show(self, what: str, ours: str, peer: str, goal: str, unit: str = "tok/s") -> None:
        """One line, if both were measured."""
        if peer in self._figures:
            pairs = list(zip(self._figures[ours], self._figures[peer], strict=True))
            mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
            spread = " ".join(f"{a / b:.2f}" for a, b in pairs)
            figures = f"{mine:.2f} against {theirs:.2f} {unit} ({spread})"
            report(f"{what}, against {peer}", statistics.median(a / b for a, b in pairs), goal, figures)


def rate(streams: list[list[float]]) -> float:
    """Tokens per second of all together while all of them are being written."""
    start, end = max(times[1] for times in streams), min(times[-1] for times in streams)
    return sum(start < t <= end for times in streams for t in times[1:]) / (end - start)


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


def gaps(times: list[float]) -> list[float]:
    """Seconds between tokens, the shortest first."""
    return sorted(b - a for a, b in pairwise(times[1:]))


async def one(bench: Bench) -> None:
    """One stream."""
    ratios = Ratios()
    async with bench.servers() as servers:
        for number in range(bench.rounds):
            ratios.note("the bare loop", loops.run("bare", bench.path, bench.threads, 1, bench.tokens))
            for name, server in servers.items():
                ratios.note(name, rate([await server.times(f"{number} {PROMPT}", bench.tokens)]))
    ratios.show("one stream", "lm", "the bare loop", "≥ 0.97")
    ratios.show("one stream", "lm", "llama-server", "≥ 0.99")


async def eight(bench: Bench) -> None:
    """Eight streams that come at once."""
    ratios = Ratios()
    shape = (bench.path, bench.threads)
    async with bench.servers() as servers:
        for number in range(bench.rounds):
            ratios.note("the bare loop", loops.run("bare", *shape, 8, bench.tokens))
            if bench.batched_bench:
                speed = peers.batched_bench(bench.batched_bench, *shape, CONTEXT, 8, bench.tokens)
                ratios.note("llama-batched-bench", speed)
            for name, server in servers.items():
                prompts = [f"{number}.{i} {PROMPT * 3}" for i in range(8)]
                streams = await asyncio.gather(*(server.times(prompt, bench.tokens) for prompt in prompts))
                ratios.note(f"{name} alone", rate(streams))
                seconds = max(times[-1] for times in streams) - min(times[0] for times in streams)
                ratios.note(name, 8 * bench.tokens / seconds)
    ratios.show("eight streams with prompts", "lm", "llama-server", "≥ 1.1")
    ratios.show("eight streams, generation", "lm alone", "llama-batched-bench", "≥ 0.95")
    ratios.show("eight streams, generation", "lm alone", "the bare loop", "≥ 0.95")


async def prefix(bench: Bench) -> None:
    """A newcomer whose prompt a running answer has computed."""
    text = PROMPT * 30
    ratios = Ratios()
    for _ in range(bench.rounds):
        async with bench.worker() as worker:
            cold = await stream(worker, bench.submit(f"Cold. {text} Why?", 2))
            running = worker.frames(bench.submit(f"{text} And then?", 1000))
            async for frame in running:
                if isinstance(frame, m.Delta):
                    break
            warm = await stream(worker, bench.submit(f"{text} Why?", 2))
        ratios.note("warm", 1e3 * (warm[1] - warm[0]))
        ratios.note("cold", 1e3 * (cold[1] - cold[0]))
    ratios.show("first token where a running answer holds the prefix", "warm", "cold", "≤ 0.2", "ms")


async def gap(bench: Bench) -> None:
    """What a long prompt does to a running answer, and the other way round."""
    text = PROMPT * 42
    ratios = Ratios()
    for _ in range(bench.rounds):
        async with bench.worker() as worker:
            alone = await stream(worker, bench.submit(f"Alone. {text}", 2))
            usual = gaps(await stream(worker, bench.submit("Usual.", 60)))
            started = asyncio.Event()
            running = asyncio.create_task(stream(worker, bench.submit("Running.", 400), started))
            await started.wait()
            newcomer = await stream(worker, bench.submit(f"New. {text}", 2))
            times = [t for t in await running if newcomer[0] <= t <= newcomer[1]]
        stretched = gaps([0.0, *times])
        ratios.note("p99", 1e3 * stretched[int((len(stretched) - 1) * 0.99)])
        ratios.note("usual", 1e3 * statistics.median(usual))
        ratios.note("beside", newcomer[1] - newcomer[0])
        ratios.note("alone", alone[1] - alone[0])
    ratios.show("p99 gap of an answer while a 900-word prompt comes in", "p99", "usual", "≤ 5", "ms")
    ratios.show("first token of that prompt", "beside", "alone", "≤ 2", "s")


async def parked(bench: Bench) -> None:
    """What others' conversations in the cache cost."""
    ratios = Ratios()
    for _ in range(bench.rounds):
        async with bench.worker() as worker:
            ratios.note("an empty one", rate([await stream(worker, bench.submit("Empty."))]))
            for i in range(4):
                await stream(worker, bench.submit(f"{i} {PROMPT * 42}", 1))
            ratios.note("half", rate([await stream(worker, bench.submit("Half full."))]))
    ratios.show("one stream in a pool half full of parked sequences", "half", "an empty one", "≥ 0.97")


async def two(bench: Bench) -> None:
    """Two workers."""
    ratios = Ratios()
    for _ in range(bench.rounds):
        async with bench.worker() as first, bench.worker() as second:
            ratios.note("one alone", rate([await stream(first, bench.submit(PROMPT))]))
            both = await asyncio.gather(*(stream(worker, bench.submit(PROMPT)) for worker in (first, second)))
            ratios.note("both", rate(both))
    ratios.show("two models at once, together", "both", "one alone", "≥ 0.8")


async def python(bench: Bench) -> None:
    """What the engine's own code costs."""
    for streams in (1, 8):
        costs = [loops.run("engine", bench.path, bench.threads, streams, bench.tokens) for _ in range(bench.rounds)]
        spread = " ".join(f"{cost:.1f}" for cost in costs)
        report(f"µs of Python per token and slot, streams: {streams}", statistics.median(costs), "≤ 50", spread)


async def start(bench: Bench) -> None:
    """From nothing to the first token, the file in the page cache."""
    ratios = Ratios()
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lm-engine-")))
        daemon, ours = stack.enter_context(peers.daemon(bench.path, home, bench.threads, CONTEXT))
        for _ in range(bench.rounds):
            daemon.post("/lm/stop", {"model": ours.model})
            began = time.perf_counter()
            ratios.note("lm", peers.first_token(ours) - began)
            if bench.llama_server:
                began = time.perf_counter()
                with peers.llama_server(bench.llama_server, bench.path, bench.threads, CONTEXT) as peer:
                    seconds = await asyncio.to_thread(peers.first_token, peer) - began
                ratios.note("llama-server", seconds)
                ratios.note("1.1 times llama-server and 0.4 s", 1.1 * seconds + 0.4)
    ratios.show("load to first token", "lm", "llama-server", "see below", "s")
    ratios.show("load to first token", "lm", "1.1 times llama-server and 0.4 s", "≤ 1", "s")


def report(what: str, value: float, goal: str, more: str = "") -> None:
    """One line of the table."""
    print(f"{what:75} {value:6.2f}  (goal {goal})  {more}", flush=True)


ALL: dict[str, Callable[[Bench], Coroutine[Any, Any, None]]] = {
    f.__name__: f for f in (start, one, eight, prefix, gap, parked, two, python)
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--peers", type=Path, help="folder of llama-server and llama-batched-bench; default: PATH")
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--only", default=",".join(ALL))
    options = parser.parse_args()
    for name in options.only.split(","):
        asyncio.run(ALL[name](Bench(options)))


if __name__ == "__main__":
    main()
