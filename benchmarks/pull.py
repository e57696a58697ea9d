"""The streaming pass against its limits: time, CPU time, memory and disk of pulls, and what else runs meanwhile.

    python -m benchmarks.pull [--only folder,rate,large,busy] [--work FOLDER] [--peer llama.cpp]

`folder`: a 1.1 B model to Q4_K_M, beside llama.cpp's converter and its quantizer (the one in llama-cpp-python, two
threads) where `--peer` names the unpacked `vendor/llama.cpp` of llama-cpp-python's source package. `rate`: the same
from a hub that sends 100 MB/s, beside curl. `large`: 8 B from a hub that makes the weights as they are read. `busy`:
the daemon's answers and a chat's speed while it pulls. CPU times are trustworthy on a busy machine, ratios of wall
times less so (the load is printed), unless `chrt -r 1` before the command keeps other programs away.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from benchmarks import synthetic
from registry.names import parse
from registry.net.hub import Hub
from runtime.messages import CacheConfig
from server.pulls.frames import ModelRequest, Planned, Progress, PullTask

LEVEL = "Q4_K_M"
Q4_K_M = 15  # llama_ftype
LARGE = ["--layers", "32", "--width", "4096", "--feed-forward", "14336", "--kv-heads", "8", "--shards", "4"]
PROMPT = "Tell me a long story about a lighthouse."


class Run(NamedTuple):
    """One pull in a process of its own: seconds of wall and CPU, those in kernels and hashes, bytes of memory, disk."""

    wall: float
    cpu: float
    useful: float
    memory: int
    disk: int
    result: int


def measured(task: PullTask) -> None:
    """Be the process of one pull: do `task`, print a `Run` as JSON."""
    import quant.stream.pipeline
    from registry import sha256
    from server.pulls.puller import pull

    spent: list[float] = []

    def counting(work: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*given: Any, **named: Any) -> Any:
            began = time.thread_time()
            try:
                return work(*given, **named)
            finally:
                spent.append(time.thread_time() - began)

        return counted

    quant.stream.pipeline.quant.quantize = counting(quant.quantize)  # type: ignore[attr-defined]
    sha256.Sha256.update = counting(sha256.Sha256.update)  # type: ignore[method-assign]
    peak = 0

    def tell(frame: Any) -> None:
        nonlocal peak
        if isinstance(frame, Planned | Progress):
            peak = max(peak, used(Path(task.folder)))

    began = time.perf_counter()
    done = pull(task, tell)
    wall = time.perf_counter() - began
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu, memory = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
    print(json.dumps(Run(wall, cpu, sum(spent), memory, max(peak, used(Path(task.folder))), done.size)))


def used(folder: Path) -> int:
    """Bytes that the files of a folder take on the disk."""
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # the journal, on its way to its name
            total += path.stat().st_blocks * 512
    return total


def pull_once(source: str, work: Path, endpoint: str = "http://127.0.0.1:1") -> Run:
    """Pull `source` into an empty folder."""
    folder = work / "ingest" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    name = source if parse(source).level else f"{source}:{LEVEL}"
    model = ModelRequest(name, Hub(endpoint), str(work / "cache"), 10**12, CacheConfig(2048, 1))
    fields = PullTask(model, str(folder))
    command = [sys.executable, "-m", "benchmarks.pull", "--task", json.dumps(msgspec.to_builtins(fields))]
    began = time.perf_counter()
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    run = Run(*json.loads(out.splitlines()[-1]))
    return run._replace(wall=time.perf_counter() - began)


def show(name: str, run: Run) -> None:
    """A line for a pull."""
    cores = len(os.sched_getaffinity(0))
    bound = 1.15 * run.useful / cores + 1.5
    print(
        f"{name:18} {run.wall:7.1f} s wall, bound {bound:.1f} s ({run.wall / bound:.2f} of it); CPU {run.cpu:.1f} s, "
        f"kernels and hashes {run.useful:.1f} s; peak {run.memory / 1e6:.0f} MB; "
        f"disk {run.disk / run.result:.3f} of the result; load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


@contextmanager
def hub(folder: Path, *options: str) -> Iterator[str]:
    """A hub as a process of its own; its URL."""
    command = [sys.executable, "-m", "benchmarks.hub", str(folder), *options]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout
    try:
        yield child.stdout.readline().strip()
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def folder_row(model: Path, work: Path, peer: Path | None) -> None:
    """1.1 B from a folder, and the peer's two steps."""
    pull_once("demo", work)  # compiles
    runs = [pull_once(str(model), work) for _ in range(2)]
    best = min(runs, key=lambda run: run.wall)
    show("1.1 B folder", best)
    if peer is None:
        print("the peer was not measured: no --peer")
        return
    steps = convert_by_peer(model, work / "peer", peer)
    walls, cpus = [wall for wall, _ in steps], [cpu for _, cpu in steps]
    print(
        f"{'llama.cpp':18} {walls[0]:7.1f} s + {walls[1]:.1f} s wall, CPU {cpus[0]:.1f} + {cpus[1]:.1f} s: "
        f"{sum(walls) / best.wall:.1f} × ours in wall, {sum(cpus) / best.cpu:.1f} × in CPU time"
    )


def convert_by_peer(model: Path, out: Path, peer: Path) -> list[tuple[float, float]]:
    """Wall and CPU seconds of conversion to BF16 and of quantization. The demo's tokenizer is none that it knows."""
    out.mkdir(exist_ok=True)
    convert = (
        "import sys, runpy, types; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/gguf-py']; "
        "none = sys.modules['sentencepiece'] = types.ModuleType('sentencepiece'); none.SentencePieceProcessor = None; "
        "none.__spec__ = runpy.__spec__; "
        "from conversion import base; "
        "base.TextModel.get_vocab_base_pre = lambda self, tokenizer: 'gpt-2'; "
        "sys.argv = ['convert', sys.argv[2], '--outtype', 'bf16', '--outfile', sys.argv[3]]; "
        "runpy.run_path(sys.path[0] + '/convert_hf_to_gguf.py', run_name='__main__')"
    )
    quantize = (
        "import sys, ctypes, llama_cpp as l; p = l.llama_model_quantize_default_params(); "
        f"p.ftype, p.nthread = {Q4_K_M}, 2; "
        "assert not l.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(p))"
    )
    full, small = str(out / "bf16.gguf"), str(out / "q4.gguf")
    steps = []
    for code, arguments in ((convert, [str(peer), str(model), full]), (quantize, [full, small])):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        steps.append((time.perf_counter() - began, cpu))
    for path in out.iterdir():
        path.unlink()
    return steps


def rate_row(model: Path, work: Path) -> None:
    """From a hub that sends 100 MB/s, beside curl from the same hub."""
    with hub(model, "--rate", "100") as url:
        began = time.perf_counter()
        target = f"{url}/bench/model/resolve/main/model.safetensors"
        subprocess.run(["curl", "-sf", "-o", os.devnull, target], check=True)
        bare = time.perf_counter() - began
        run = pull_once("bench/model", work, url)
    show("1.1 B at 100 MB/s", run)
    print(f"{'curl':18} {bare:7.1f} s: ours takes {run.wall / bare:.3f} of it")


def large_row(work: Path) -> None:
    """8 B, made as it is read."""
    folder = work / "large"
    options = synthetic.parser().parse_args([str(folder), *LARGE, "--heads", "32", "--vocabulary", "128256"])
    synthetic.make(folder, options, sparse=True)
    with hub(folder, "--sparse") as url:
        show("8 B sparse hub", pull_once("bench/model", work, url))


def busy_row(model: Path, work: Path) -> None:
    """`/api/version` and a chat with the demo, alone and while the daemon pulls."""
    from tests.daemon import Daemon

    alone: list[float] = []
    beside: list[float] = []
    delays: list[float] = []
    with Daemon(work / "home", runtime="llama") as daemon:
        daemon.pull("demo")
        chat(daemon)
        ended = threading.Event()

        def follow() -> None:
            daemon.post("/api/pull", {"model": f"{model}:{LEVEL}"})
            ended.set()

        threads = [threading.Thread(target=follow), threading.Thread(target=tick, args=(daemon, ended, delays))]
        for thread in threads:
            thread.start()
        while not ended.is_set():
            puller = next((child for child in daemon.children() if "server.pulls.puller" in child.cmdline()), None)
            if puller is None:
                continue
            # In turns, so that whatever else this machine does counts for both.
            for sign, speeds in ((signal.SIGSTOP, alone), (signal.SIGCONT, beside)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(puller.pid, sign)
                    speeds.append(chat(daemon))
        for thread in threads:
            thread.join()
    delays.sort()
    speed = statistics.median(beside[:-1]) / statistics.median(alone)
    print(
        f"while pulling: /api/version p50 {1e3 * statistics.median(delays):.1f} ms, "
        f"p99 {1e3 * delays[int(0.99 * len(delays))]:.1f} ms of {len(delays)}; "
        f"chat {statistics.median(alone):.0f} tokens/s with the pull halted, keeps {speed:.2f} "
        f"({len(beside)} answers); load {os.getloadavg()[0]:.1f}"
    )


def tick(daemon: Any, ended: threading.Event, delays: list[float]) -> None:
    """Ask for the version again and again."""
    while not ended.wait(0.02):
        began = time.perf_counter()
        daemon.get("/api/version")
        delays.append(time.perf_counter() - began)


def chat(daemon: Any) -> float:
    """Tokens per second of one answer."""
    body = {"model": "demo", "prompt": PROMPT, "stream": False, "options": {"num_predict": 150, "seed": 1}}
    told = daemon.post("/api/generate", body).json
    return float(told["eval_count"] / told["eval_duration"] * 1e9)


def main() -> None:
    """Run the rows that were chosen."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="folder,rate,large,busy", help="rows, separated by commas")
    parser.add_argument("--work", type=Path, default=Path("/tmp/lm-pull"), help="needs 6 GB; models stay there")
    parser.add_argument("--peer", type=Path, help="unpacked vendor/llama.cpp of llama-cpp-python's source package")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        measured(msgspec.convert(json.loads(options.task), PullTask))
        return
    work, rows = options.work, options.only.split(",")
    model = work / "model"
    if not model.exists() and set(rows) & {"folder", "rate", "busy"}:
        synthetic.make(model, synthetic.parser().parse_args([str(model)]))
    if "folder" in rows:
        folder_row(model, work, options.peer)
    if "rate" in rows:
        rate_row(model, work)
    if "large" in rows:
        large_row(work)
    if "busy" in rows:
        busy_row(model, work)


if __name__ == "__main__":
    main()
