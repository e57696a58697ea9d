"""Many clients at once, and small answers, against a bare aiohttp server in one run: `python -m benchmarks.crowd`.

It takes names of parts: `burst` (500 requests at once on one slot with a queue of 64), `idle` (1,000 idle and 200 slow
connections beside normal requests), `small` (answers of `/api/version` for each second of the daemon's CPU time, the
first byte of a chat above the engine's own, `lm --help` above bare Python, the start of a daemon). The engine is the
scripted one: nothing but the daemon's own work is in the figures.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import aiohttp
import psutil
from aiohttp import web

from runtime import messages as m
from runtime.conversation import Turn
from tests.daemon import Daemon, put_model
from tests.runtime.working import load_frame, working

BURST, IDLE, SLOW, NORMAL = 500, 1000, 200, 100
SCRIPT = {"tokens": ["a"] * 4, "delay": 0.005}
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "one two"}], "stream": False}
CHAT = "/v1/chat/completions"


class Timed(NamedTuple):
    """One answer: its status, whether it says when to try again, and the seconds that it took."""

    status: int
    retry: bool
    seconds: float


def p99(values: Sequence[float]) -> float:
    """The value that one in a hundred is above."""
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.99))]


async def bare(port: int) -> None:
    """A server that reads a body and answers with a little JSON."""

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({"status": "ok"})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    print("ready", flush=True)
    await asyncio.Event().wait()


@contextlib.contextmanager
def bare_server() -> Iterator[str]:
    """The URL of a bare server in a process of its own."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.crowd", "bare", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield f"http://127.0.0.1:{port}"
        process.terminate()


@contextlib.asynccontextmanager
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """A client without a bound on its connections."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        yield client


async def ask(client: aiohttp.ClientSession, url: str, path: str, body: object = None) -> Timed:
    """One request."""
    began = time.perf_counter()
    async with client.request("GET" if body is None else "POST", url + path, json=body) as answer:
        await answer.read()
        return Timed(answer.status, "Retry-After" in answer.headers, time.perf_counter() - began)


async def crowd(url: str) -> tuple[list[Timed], list[Timed]]:
    """The answers to `BURST` chats at once, and to `/health` asked all the while."""
    async with session() as client, session() as watcher:
        chats = [asyncio.create_task(ask(client, url, CHAT, BODY)) for _ in range(BURST)]
        probes = []
        while not all(chat.done() for chat in chats):
            probes.append(await ask(watcher, url, "/health"))
            await asyncio.sleep(0.01)
        return [await chat for chat in chats], probes


def burst() -> None:
    """Print what 500 requests at once get, and how long refusals and `/health` take."""
    with tempfile.TemporaryDirectory() as folder, bare_server() as url:
        put_model(Path(folder))
        with Daemon(Path(folder), script=SCRIPT, env={"LM_SEQUENCES": "1", "LM_QUEUE": "64"}) as daemon:
            daemon.post(CHAT, BODY)  # the model is loaded
            chats, probes = asyncio.run(crowd(daemon.url))
        others, bare_probes = asyncio.run(crowd(url))
    counted = Counter(answer.status for answer in chats)
    silent = sum(not answer.retry for answer in chats if answer.status != 200)
    refused = [answer.seconds for answer in chats if answer.status != 200]
    ratio = p99(refused) / p99([answer.seconds for answer in others]) if refused else 0.0
    print(f"burst of {BURST}: {dict(counted)}, {silent} refusals without Retry-After")
    print(f"  refusals p99 {p99(refused) * 1e3:.0f} ms, {ratio:.2f} times the bare server's answers (goal 3)")
    health, bare_health = (p99([probe.seconds for probe in each]) for each in (probes, bare_probes))
    print(f"  /health p99 {health * 1e3:.0f} ms, {health / bare_health:.2f} times the bare server's (goal 2)")


async def normal(url: str) -> float:
    """The p99 of normal requests, one after the other, in seconds."""
    async with session() as client:
        return p99([(await ask(client, url, CHAT, BODY)).seconds for _ in range(NORMAL)])


async def connected(host: str, port: int, number: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection from one of four addresses of this machine, each of which may have 512."""
    return await asyncio.open_connection(host, port, local_addr=(f"127.0.0.{2 + number % 4}", 0))


async def beside_others(url: str) -> tuple[float, float, int]:
    """The p99 of normal requests alone and beside idle and slow connections, and how many of these stayed open."""
    host, port = url.removeprefix("http://").split(":")
    alone = await normal(url)
    opened = [await connected(host, int(port), number) for number in range(IDLE)]
    slow = [await connected(host, int(port), number) for number in range(SLOW)]

    async def trickle(writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            for byte in b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n" + b" " * 10_000:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.2)

    tasks = [asyncio.create_task(trickle(writer)) for _, writer in slow]
    crowded = await normal(url)
    left = sum(not reader.at_eof() for reader, _ in [*opened, *slow])
    for task in tasks:
        task.cancel()
    for _, writer in [*opened, *slow]:
        writer.close()
    return alone, crowded, left


def idle() -> None:
    """Print how idle and slow connections delay normal requests."""
    with tempfile.TemporaryDirectory() as folder:
        put_model(Path(folder))
        with Daemon(Path(folder), script=SCRIPT) as daemon:
            daemon.post(CHAT, BODY)
            alone, crowded, left = asyncio.run(beside_others(daemon.url))
    print(f"{IDLE} idle and {SLOW} slow connections ({left} open at the end): a request's p99 is")
    print(f"  {crowded * 1e3:.1f} ms, {crowded / alone:.2f} times as long as alone (goal 2)")


async def rate(daemon: Daemon) -> float:
    """Answers of `/api/version` for each second of the daemon's CPU time, over 8 connections."""
    process = psutil.Process(daemon.pid)
    async with session() as client:

        async def some(count: int) -> None:
            for _ in range(count):
                await ask(client, daemon.url, "/api/version")

        await some(100)
        before = sum(process.cpu_times()[:2])
        await asyncio.gather(*(some(250) for _ in range(8)))
        return 2000 / (sum(process.cpu_times()[:2]) - before)


async def first_bytes(daemon: Daemon) -> tuple[float, float]:
    """Seconds to the first text of a chat, median: through the daemon, and from the engine's process alone."""
    told = []
    body = BODY | {"stream": True}
    async with session() as client:
        for _ in range(200):
            began = time.perf_counter()
            async with client.post(daemon.url + "/api/chat", json=body) as answer:
                await answer.content.readline()
                told.append(time.perf_counter() - began)
                await answer.read()
    alone = []
    load = load_frame("", context=2048, sequences=4, queue=64, engine="fake", script={"tokens": ["a"] * 4})
    async with working(load) as worker:
        for _ in range(200):
            began = time.perf_counter()
            answer_of = await worker.ask(m.Submit(0, turns=[Turn.of("user", "one two")], limits=m.Limits(max_tokens=1)))
            assert answer_of.text == "a"
            alone.append(time.perf_counter() - began)
    return statistics.median(told), statistics.median(alone)


def seconds(work: Callable[[], object], times: int = 9) -> float:
    """The median time of some work."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def small() -> None:
    """Print what small things take."""
    with tempfile.TemporaryDirectory() as folder:
        put_model(Path(folder))
        with Daemon(Path(folder), script={"tokens": ["a"] * 4}) as daemon:
            daemon.post(CHAT, BODY)
            print(f"/api/version: {asyncio.run(rate(daemon)):,.0f} answers for each second of CPU time (goal 1,500)")
            through, alone = asyncio.run(first_bytes(daemon))
            print(f"first byte of a chat: {(through - alone) * 1e3:.2f} ms above the engine's own (goal 3)")
        starts, work = [], []
        for _ in range(5):
            with Daemon(Path(folder), script={}) as daemon:
                starts.append(daemon.ready_seconds)
                work.append(sum(psutil.Process(daemon.pid).cpu_times()[:2]))
    ready, busy = statistics.median(starts), statistics.median(work)
    print(f"a daemon is ready after {ready:.2f} s (goal 0.5), of which it computes {busy:.2f} s")

    def run(*arguments: str) -> None:
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)

    lm = "import sys; sys.argv[0] = 'lm'; from cli.start import main; main()"
    helped, python = seconds(lambda: run("-c", lm, "--help")), seconds(lambda: run("-c", "pass"))
    print(f"lm --help: {(helped - python) * 1e3:.0f} ms above bare Python (goal 80)")


PARTS: dict[str, Callable[[], None]] = {"burst": burst, "idle": idle, "small": small}


def main(arguments: list[str]) -> None:
    """Print the parts that are named, or all."""
    if arguments[:1] == ["bare"]:
        asyncio.run(bare(int(arguments[1])))
        return
    for name in arguments or PARTS:
        PARTS[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
