"""Whether predictions come true: memory, speed, the level under a real limit, loads near a limit, advice from a hub.

    python -m benchmarks.fit [memory | speed | pairs | loads | advice …]

Memory: a worker as the daemon starts it, a request that fills the context, and then what the kernel says the process
holds. Models are `benchmarks/shapes.py`'s. Limits are a control group's where one can be made, else `RLIMIT_DATA`,
with weights read instead of mapped, so that every byte counts. Measure on an idle machine.
"""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import psutil

from benchmarks import limited, shapes, synthetic
from quant.gguf.header import read_file
from quant.levels.recipes import LADDER, assign
from runtime import messages as m
from runtime.child import Child
from runtime.machine import choosing, fit, rule, step_time
from runtime.machine.hardware import Hardware, usable_cpus
from runtime.machine.inspection import Reserved, ask_reserved
from runtime.machine.rates import Rates
from runtime.options import Limits, Sampling
from tests.daemon import Daemon
from tests.hub import Hub

PAGE = 4096
CONTEXT, SEQUENCES = 2048, 8
SPEED_LEVELS, SPEED_ROUNDS, SPEED_TRIES = ("Q8_0", "Q4_K_M", "Q2_K"), 3, 3
# The part of the processors' time that an answer must have had to count.
ALONE = 0.85


USUAL = m.CacheConfig(CONTEXT, SEQUENCES)
# A model that the processor's caches nearly hold.
TALE = shapes.llama(layers=6, width=512, wide=1536, heads=8, shared=4, vocabulary=4096, tied=True)
# What no constant was fitted on: other heads, vocabularies, levels, contexts and caches.
UNSEEN = [
    ("heads", shapes.llama(8, 1536, 8192, 12, 2, 101_000), "Q4_K_M", m.CacheConfig(8192, 4, "Q8_0")),
    ("sixteen", shapes.llama(10, 1280, 1536, 20, 10, 60_000, experts=16), "Q6_K", m.CacheConfig(4096, 2)),
]


@dataclass(frozen=True)
class Held:
    """What a worker holds, in bytes: `anonymous` of its own, `mapped` of the file's length in its address space."""

    anonymous: int
    mapped: int
    ready: m.Ready


@asynccontextmanager
async def worker(path: Path, made: m.CacheConfig = USUAL) -> AsyncIterator[tuple[Child, m.Ready]]:
    """A worker that has loaded `path`, and keeps no conversations beside its cache."""
    child = await Child.spawn("runtime.worker", frames=m.FromWorker)
    try:
        load = m.Load(str(path), made, usable_cpus(), 64, spill=0)
        await child.send(load)
        while not isinstance(frame := await child.receive(), m.Ready):
            if frame is None or isinstance(frame, m.Failed):
                raise RuntimeError(f"{frame} {child.ending}")
        yield child, frame
    finally:
        child.kill()
        await child.wait()


async def generate(child: Child, prompt: int, tokens: int) -> m.Finished:
    """One answer of `tokens` after a prompt of `prompt` tokens, all different from any before."""
    sampling = Sampling(temperature=0, ignore_eos=True)
    ids = [3 + number % 1000 for number in range(prompt)]
    await child.send(m.Submit(1, prompt=ids, sampling=sampling, limits=Limits(max_tokens=tokens)))
    while not isinstance(frame := await child.receive(), m.Finished):
        if frame is None or isinstance(frame, m.Failed):
            raise RuntimeError(f"{frame} {child.ending}")
    return frame


def held(pid: int, path: Path, ready: m.Ready) -> Held:
    """What the kernel counts for the process."""
    status = Path(f"/proc/{pid}/status").read_text()
    anonymous = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon"))
    mapped = 0
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if line.endswith(str(path)):
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            mapped += end - start
    return Held(anonymous, mapped, ready)


async def _fill(path: Path, made: m.CacheConfig) -> Held:
    async with worker(path, made) as (child, ready):
        await generate(child, min(made.context, CONTEXT) - 16, 8)
        return held(child.pid, path, ready)


def memory() -> None:
    """Anonymous memory after a request that filled 2,048 tokens, on eight shapes and two more; mapped bytes."""
    print(f"{'shape':10} {'file':>14} {'mapped':>8} {'predicted':>10} {'measured':>10} {'error':>7}   (formula alone)")
    cases = [(name, make(), "Q8_0", USUAL) for name, make in shapes.SHAPES.items()] + UNSEEN
    with tempfile.TemporaryDirectory(prefix="lm-fit-") as folder:
        for name, made, level, setting in cases:
            path = Path(folder) / f"{name}.gguf"
            length = shapes.write(path, made, level)
            need, formula = _predict(path, length, setting)
            got = asyncio.run(_fill(path, setting))
            # llama.cpp lets go of the pages that hold nothing but the header
            mapped = -(-length // PAGE) * PAGE - read_file(path).data_offset // PAGE * PAGE
            path.unlink()
            print(
                f"{name:10} {length:14,} {'exact' if got.mapped == mapped else got.mapped - mapped!s:>8} "
                f"{need.anonymous / 1e6:7.1f} MB {got.anonymous / 1e6:7.1f} MB "
                f"{need.anonymous / got.anonymous - 1:+7.1%}   {formula.anonymous / got.anonymous - 1:+7.1%}",
                flush=True,
            )


def _predict(path: Path, length: int, made: m.CacheConfig = USUAL) -> tuple[fit.Need, fit.Need]:
    """By llama.cpp's own word, and by the formulas alone."""
    header = read_file(path)
    model_size = fit.ModelSize.of(header.metadata)
    reserved = ask_reserved(header.metadata, header.tensors, made)
    copied = fit.repacked(header.tensors, reserved.repacks) if reserved else 0
    needs = (fit.memory(each, length, made) for each in (model_size.with_reserved(reserved), model_size))
    said, formula = (replace(need, repacked=copied) for need in needs)
    return said, formula


def speed() -> None:
    """Tokens per second at three levels of two shapes, a mixture and a tiny model, by the rates of a fresh probe.

    Measured in turn, round after round, and the median counts: a shared processor's speed drifts.
    """
    with tempfile.TemporaryDirectory(prefix="lm-fit-") as text:
        folder = Path(text)
        probed = Rates(folder, usable_cpus()).measure()
        if probed is None:
            raise RuntimeError("llama.cpp cannot be probed")
        cases = [*itertools.product(("grouped", "tied"), SPEED_LEVELS), ("experts", "Q4_K_M"), ("tale", "Q8_0")]
        wanted: dict[tuple[str, str], float] = {}
        got: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
        for name, level in cases:
            made = TALE if name == "tale" else shapes.SHAPES[name]()
            shapes.write(folder / f"{name}-{level}.gguf", made, level)
            plan = shapes.plan_of(made)
            reads = choosing.reads(plan, plan.at(assign(plan, level)), fit.ModelSize.of(plan.metadata))
            wanted[name, level] = 1 / step_time.seconds(probed, reads, 48)
        for _, (name, level) in itertools.product(range(SPEED_ROUNDS), cases):
            rate = asyncio.run(_rate(folder / f"{name}-{level}.gguf"))
            got[name, level] += [rate] if rate else []
    print(f"{'shape':10} {'level':8} {'predicted':>9} {'measured':>9} {'error':>7}   (rounds)")
    right = 0
    for name, level in cases:
        if not got[name, level]:
            print(f"{name:10} {level:8} other programs were busy all the time")
            continue
        measured = median(got[name, level])
        error = wanted[name, level] / measured - 1
        right += abs(error) <= 0.15 and name in ("grouped", "tied")
        each = ", ".join(f"{rate:.1f}" for rate in got[name, level])
        print(f"{name:10} {level:8} {wanted[name, level]:9.2f} {measured:9.2f} {error:+7.1%}   ({each})")
    print(f"{right}/6 within 15 %; the probe was {'steady' if probed.steady else 'not steady'}")


async def _rate(path: Path) -> float | None:
    """Tokens per second of an answer that other programs left the processors to; None where there was none."""
    async with worker(path) as (child, _):
        process = psutil.Process(child.pid)
        await generate(child, 16, 8)
        for _ in range(SPEED_TRIES):
            used, begun = sum(process.cpu_times()[:2]), time.perf_counter()
            ended = await generate(child, 16, 64)
            share = (sum(process.cpu_times()[:2]) - used) / (time.perf_counter() - begun)
            if share > ALONE * usable_cpus():
                return ended.answer_tokens / (ended.answer_ns / 1e9)
    return None


def pairs() -> None:
    """Twenty models under a limit: the level that the rule chooses runs, the next better one does not."""
    right = 0
    with tempfile.TemporaryDirectory(prefix="lm-fit-") as text:
        path, excess = Path(text) / "limited.gguf", _excess(Path(text))
        print(f"{_kind()}; a process is charged {excess / 1e6:.0f} MB beyond what it holds")
        for name, index in itertools.product(("grouped", "experts", "window", "tied", "wide"), range(1, 5)):
            made = shapes.SHAPES[name]()
            plan, needs = shapes.plan_of(made), {}
            for level in LADDER[:5]:
                length = shapes.write(path, made, level)
                needs[level] = _predict(path, length)[0]
            better, fitting = needs[LADDER[index - 1]].total, needs[LADDER[index]].total
            limit = fitting + (better - fitting) // 2
            machine = Hardware(64 << 30, 64 << 30, 64 << 30, 2, 1e12)
            candidates = [rule.Candidate(level, needs[level].weights) for level in needs]
            wish = rule.Wish(USUAL, memory=limit)
            model_size = fit.ModelSize.of(plan.metadata).with_reserved(_reserved(path))
            chosen = rule.choose(candidates, model_size, rule.Host(machine), wish).level
            ran = []
            for level in (chosen, LADDER[LADDER.index(chosen) - 1]):
                shapes.write(path, made, level)
                ran.append(_run(path, CONTEXT, limit + excess) is not None)
            good = chosen == LADDER[index] and ran == [True, False]
            right += good
            print(f"{name:10} {limit / 1e6:7.0f} MB  {chosen:7} runs: {ran[0]}, the next better: {ran[1]}", flush=True)
    print(f"{right}/20 as predicted")


def loads() -> None:
    """Fifty loads of 80 to 120 % of a limit: those that are admitted live, none below 90 % is refused."""
    killed = refused = admitted = 0
    with tempfile.TemporaryDirectory(prefix="lm-fit-") as text:
        path, excess = Path(text) / "load.gguf", _excess(Path(text))
        configurations = list(itertools.product(("grouped", "experts", "window", "tied", "wide"), (256, 1024)))
        for name, context in configurations:
            length = shapes.write(path, shapes.SHAPES[name](), "Q2_K")
            need = _predict(path, length, m.CacheConfig(context, SEQUENCES))[0]
            true = _run(path, context, 0) or 0
            for percent in (80, 88, 95, 105, 120):
                limit = true * 100 // percent
                if need.total > limit:
                    refused += percent < 90
                    continue
                admitted += 1
                killed += _run(path, context, limit + excess) is None
            print(f"{name:10} {context:5} predicted {need.total / 1e6:7.1f} MB, took {true / 1e6:7.1f} MB", flush=True)
    print(f"{_kind()}\n50 loads: {admitted} admitted, {killed} of them died; {refused} refused below 90 %")


def _reserved(path: Path) -> Reserved | None:
    header = read_file(path)
    return ask_reserved(header.metadata, header.tensors, USUAL)


def _kind() -> str:
    return f"limits are those of a control group below {group}" if (group := limited.parent_group()) else "RLIMIT_DATA"


def _excess(folder: Path) -> int:
    """What counts against `RLIMIT_DATA` but is never touched: stacks of threads, arenas, libraries; 0 in a group."""
    if limited.parent_group():
        return 0
    path = folder / "excess.gguf"
    shapes.write(path, shapes.SHAPES["experts"](), "Q2_K")
    done = _child(path, CONTEXT, 0)
    anonymous, data = (int(part) for part in done.stdout.split())
    path.unlink()
    return data - anonymous


def _run(path: Path, context: int, limit: int) -> int | None:
    """What a process held that loaded and ran the model under a limit in bytes (0: none), None where it could not."""
    done = _child(path, context, limit)
    return int(done.stdout.split()[0]) if done.returncode == 0 else None


def _child(path: Path, context: int, limit: int) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "benchmarks.limited", str(path), str(context), str(SEQUENCES), str(limit)]
    with limited.group(limit) as folder:
        return subprocess.run([*command, str(folder or "")], capture_output=True, check=False)


def advice() -> None:
    """The advice for a repository on a hub: seconds, and bytes that were fetched."""
    with tempfile.TemporaryDirectory(prefix="lm-fit-") as text:
        folder = Path(text) / "model"
        sizes = ["--layers", "32", "--width", "256", "--heads", "4", "--feed-forward", "512", "--shards", "8"]
        synthetic.make(folder, synthetic.parser().parse_args([str(folder), *sizes]))
        with Hub({"org/model": folder}) as hub, Daemon(Path(text) / "home", env={"HF_ENDPOINT": hub.url}) as daemon:
            for _ in range(5):
                sent, begun = hub.bytes_sent, time.perf_counter()
                answer = daemon.post("/lm/advise", {"model": "org/model"})
                seconds = time.perf_counter() - begun
                print(f"{answer.json['level']}: {seconds:.2f} s, {(hub.bytes_sent - sent) / 1e6:.3f} MB", flush=True)


PARTS = {"memory": memory, "speed": speed, "pairs": pairs, "loads": loads, "advice": advice}


if __name__ == "__main__":
    for part in sys.argv[1:] or PARTS:
        print(f"\n{part}: {PARTS[part].__doc__}")
        PARTS[part]()
