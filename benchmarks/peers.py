"""Servers for `benchmarks/engine.py`, spoken to alike over `/v1/completions`: our daemon, and llama.cpp's own programs.

`llama-server` and `llama-batched-bench` are built from llama-cpp-python's source package (`vendor/llama.cpp`), so that
all run the same kernels. Both get the shape of the daemon's worker: one unified cache, eight sequences.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.loops import SAMPLING, SEQUENCES, TOKEN
from tests.daemon import Daemon

_TEXT = re.compile(rb'"text": ?"[^"]')


@dataclass(frozen=True)
class Server:
    """Something that answers on a port of this machine, under the name that it knows the model by."""

    port: int
    model: str

    async def times(self, prompt: str, tokens: int) -> list[float]:
        """When the request was sent, and when each token came."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        with closing(writer):
            writer.write(_request(_body(self.model, prompt, tokens)))
            times = [time.perf_counter()]
            rest = b""
            while data := await reader.read(1 << 16):
                now = time.perf_counter()
                *events, rest = (rest + data).split(b"\n\n")
                times += [now for event in events if _TEXT.search(event)]
        if not tokens - 1 <= len(times) - 1 <= tokens:
            raise SystemExit(f"{len(times) - 1} of {tokens} tokens came from {self}: {rest!r}")
        return times


def _body(model: str, prompt: str, tokens: int) -> dict[str, Any]:
    given = {"temperature": SAMPLING.temperature, "top_k": SAMPLING.top_k, "top_p": SAMPLING.top_p, "min_p": 0.0}
    bias = {"logit_bias": {str(TOKEN): SAMPLING.logit_bias[TOKEN]}}
    return {"model": model, "prompt": prompt, "max_tokens": tokens, "stream": True, **given, **bias}


def _request(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    lines = ("POST /v1/completions HTTP/1.1", "Host: 127.0.0.1", "Connection: close", "Content-Type: application/json")
    return "\r\n".join((*lines, f"Content-Length: {len(data)}", "", "")).encode() + data


def first_token(server: Server) -> float:
    """When the first token came; asks again for as long as the server is not there, or not ready."""
    body = json.dumps(_body(server.model, "Once", 1))
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        try:
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            if answer.status == 200 and _TEXT.search(answer.read()):
                return time.perf_counter()
        except ConnectionError:
            pass
        finally:
            connection.close()
        time.sleep(0.005)  # the peer cannot say that it is ready


def find(folder: Path | None, name: str) -> str | None:
    """The peer `name` in `folder` or on PATH."""
    return shutil.which(name, path=str(folder)) if folder else shutil.which(name)


@contextmanager
def llama_server(program: str, model: Path, threads: int, context: int) -> Iterator[Server]:
    """llama-server, from nothing; it may not listen yet."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    shape = ["-c", str(context), "-np", str(SEQUENCES), "--kv-unified", "-t", str(threads)]
    command = [program, "-m", str(model), "--port", str(port), *shape]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield Server(port, "any")
    finally:
        process.kill()
        process.wait()


def batched_bench(program: str, model: Path, threads: int, context: int, streams: int, tokens: int) -> float:
    """Tokens per second of generation alone, as llama-batched-bench measures it: nothing is sampled."""
    shape = ["-c", str(context), "-t", str(threads), "--kv-unified"]
    load = ["-npp", "32", "-ntg", str(tokens), "-npl", str(streams), "--output-format", "jsonl"]
    done = subprocess.run([program, "-m", str(model), *shape, *load], capture_output=True, text=True, check=True)
    line = next(line for line in (done.stdout + done.stderr).splitlines() if line.startswith("{"))
    return float(json.loads(line)["speed_tg"])


@contextmanager
def daemon(model: Path, home: Path, threads: int, context: int) -> Iterator[tuple[Daemon, Server]]:
    """Our daemon in an empty home, with `model` in its store, not loaded."""
    env = {"LM_CONTEXT": str(context), "LM_SEQUENCES": str(SEQUENCES)}
    with Daemon(home, runtime="llama", env=env) as ours:
        name = ours.pull(str(model))["name"]
        yield ours, Server(ours.port, name)
