"""Loops in this process, for `benchmarks/engine.py`: llama.cpp's alone, and the engine's with a clock on its own part.

    python -m benchmarks.loops {bare | engine} MODEL.gguf THREADS STREAMS TOKENS

`bare` prints tokens per second of generation with nothing but the sampler chain; `engine` prints the microseconds of a
step, per stream, that pass outside of llama.cpp.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime import messages as m
from runtime.child import Parent
from runtime.engine.loop import LlamaEngine
from runtime.llama.context import Context, ContextParams
from runtime.llama.model import LlamaModel
from runtime.llama.sampling import Sampler
from runtime.options import Limits, Sampling
from runtime.worker import SWITCH_SECONDS

PROMPT = "It was a dark night, and the wind blew from the sea. The old man sat by the fire and said: "
# Token 300 of most byte-level vocabularies is a plain one: random weights would write bytes that make no text.
TOKEN = 300
SAMPLING = Sampling(logit_bias={TOKEN: 100.0})
POOL = 8192
SEQUENCES = 8


def run(kind: str, path: Path, threads: int, streams: int, tokens: int) -> float:
    """What `kind` prints, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.loops", kind, str(path), *map(str, (threads, streams, tokens))]
    return float(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout))


def bare(path: str, threads: int, streams: int, tokens: int) -> float:
    """Tokens per second of `tokens` steps of `streams` rows, each sampled in C, after a prompt for every stream."""
    model = LlamaModel(Path(path))
    context = Context(model, ContextParams(POOL, 2 * SEQUENCES, SEQUENCES, threads))
    ids = model.vocabulary.tokenize(PROMPT, special=False, add=True)
    samplers = [Sampler(model.vocabulary, SAMPLING, number, POOL) for number in range(streams)]
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
    return streams * tokens / (time.perf_counter() - started)


def engine(path: str, threads: int, streams: int, tokens: int) -> float:
    """Microseconds per token and stream of the engine's loop that pass outside of llama.cpp's decoding and sampling."""
    sys.setswitchinterval(SWITCH_SECONDS)
    reader, writer = socket.socketpair()
    with reader, subprocess.Popen(["cat"], stdin=reader, stdout=subprocess.DEVNULL):
        parent = Parent(writer, [], m.ToWorker)
        shares: list[float] = []
        inside = _Clock()
        load = m.Load(path, m.CacheConfig(POOL, SEQUENCES), threads, 64)
        loop, _ = LlamaEngine.open(load, parent.send)
        loop._context._decode = inside.timed(loop._context._decode)
        loop._begin = _with_clock(loop._begin, inside)  # type: ignore[method-assign]
        flush, before = loop._flush, [time.perf_counter(), 0.0]

        def flushed() -> None:
            flush()
            now = time.perf_counter()
            # Steps with a prompt in them are another matter, and so is the one that ends answers.
            if len(loop._schedule.running) == streams and all(s.answer_tokens > 1 for s in loop._schedule.running):
                shares.append(now - before[0] - (inside.seconds - before[1]))
            before[:] = now, inside.seconds

        loop._flush = flushed  # type: ignore[method-assign]
        for number in range(streams):
            limits = Limits(max_tokens=tokens)
            loop.take(m.Submit(number + 1, prompt=f"{number} {PROMPT}", sampling=SAMPLING, limits=limits))
        _until_done(loop)
        writer.close()
    return 1e6 * sum(shares[2:]) / len(shares[2:]) / streams


class _Clock:
    """Adds up the time within some calls."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*given: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*given)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


def _with_clock(begin: Callable[[Any], None], inside: _Clock) -> Callable[[Any], None]:
    def begun(session: Any) -> None:
        begin(session)
        session.sampler._sample = inside.timed(session.sampler._sample)

    return begun


def _until_done(loop: LlamaEngine) -> None:
    """Serve until the last request that was taken has its answer."""
    finish = loop._release

    def released(session: Any) -> None:
        finish(session)
        if not loop._schedule.sessions:
            loop.take(m.Shutdown())

    loop._release = released  # type: ignore[method-assign]
    loop.run()


if __name__ == "__main__":
    kind, model, *numbers = sys.argv[1:]
    print(json.dumps({"bare": bare, "engine": engine}[kind](model, *map(int, numbers))), flush=True)
    os._exit(0)
