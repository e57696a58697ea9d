"""A real daemon as a subprocess, in a home of its own, on a free port; for the tests of the server and of the CLI.

    with Daemon(tmp_path, script={"tokens": ["a", "b"]}) as daemon:      # the scripted engine of `runtime/fake.py`
        assert daemon.post("/api/chat", {...}).json["done"]
    with Daemon(tmp_path, runtime="llama") as daemon: ...                # the real one

`put_model` lays a tiny GGUF (which only the scripted engine can "run") into a home's store before the daemon starts.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from quant.gguf.header import DEFAULT_ALIGNMENT, align
from quant.gguf.writer import encode_header, layout
from quant.types import QuantType, Tensor
from registry.names import LIBRARY, LOCAL, Name
from registry.store.store import Store
from tests.storing import put

WIDTH = 32
START_SECONDS = 30.0
_CLEAN = {"PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH", "NUMBA_CACHE_DIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV"}


@dataclass(frozen=True)
class Answer:
    """A response of the daemon, read whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        """The objects of a stream of lines."""
        return [json.loads(line) for line in self.body.splitlines()]

    @property
    def events(self) -> list[Any]:
        """The objects of server-sent events, without the closing `[DONE]`, which must be there or be an error."""
        data = [line.removeprefix(b"data: ") for line in self.body.split(b"\n\n") if line]
        if data[-1] == b"[DONE]":
            return [json.loads(line) for line in data[:-1]]
        events = [json.loads(line) for line in data]
        assert "error" in events[-1]
        return events


class Daemon:
    """A running daemon; leaving the block ends it gracefully, and fails if it met anything unforeseen."""

    def __init__(
        self,
        home: Path,
        *,
        runtime: str = "fake",
        script: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
        arguments: tuple[str, ...] = (),
    ) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        if script is not None:
            path = home / "script.json"
            path.write_text(json.dumps(script))
            runtime = f"{runtime}:{path}"
        receiver, sender = os.pipe()
        command = [sys.executable, "-P", "-m", "server", "--home", str(home), "--runtime", runtime, *arguments]
        if "--port" not in arguments:
            command += ["--port", "0"]
        began = time.perf_counter()
        self._errors = (home / "stderr").open("ab")
        self.process = subprocess.Popen(
            [*command, "--ready-fd", str(sender)],
            stdin=subprocess.DEVNULL,
            stdout=self._errors,
            stderr=self._errors,
            pass_fds=(sender,),
            env=environment() | dict(env or {}),
        )
        os.close(sender)
        with os.fdopen(receiver, "rb") as file:
            self.ready_line = file.readline().decode()
        self.ready_seconds = time.perf_counter() - began
        self.url = ""
        if self.ready_line == "ready\n":
            self.url = json.loads((home / "daemon.json").read_bytes())["url"]

    def __enter__(self) -> Daemon:
        assert self.url, self.errors
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        text = self.log + self.errors
        assert "Traceback" not in text, text[text.index("Traceback") - 500 :][:5000]

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def log(self) -> str:
        path = self.home / "logs" / "daemon.log"
        return path.read_text() if path.exists() else ""

    @property
    def errors(self) -> str:
        """The lines that it printed; none as long as all is well, but `ready` on the pipe."""
        return self.ready_line + (self.home / "stderr").read_text()

    def stop(self, seconds: float = 15.0) -> int:
        """End it as a service manager would (SIGTERM); returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise
        self._errors.close()
        return self.process.returncode

    def ended(self, seconds: float = 10.0) -> int:
        """Wait until it ends by itself; returns its exit status."""
        status = self.process.wait(seconds)
        self._errors.close()
        return status

    def kill(self) -> None:
        """End it without warning."""
        self.process.kill()
        self.process.wait()
        self._errors.close()

    def children(self) -> list[psutil.Process]:
        """Its workers and pullers."""
        return psutil.Process(self.pid).children(recursive=True)

    def workers(self) -> list[int]:
        """The process ids of its loaded models."""
        return [row["pid"] for row in self.get("/api/ps").json["models"]]

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, headers=headers)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        return self.ask("POST", path, body, headers)

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """One request; `body` is bytes as they are, or an object to be sent as JSON."""
        with self.opened(method, path, body, headers) as response:
            return Answer(response.status, dict(response.headers.items()), response.read())

    @contextlib.contextmanager
    def opened(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """The response while it streams; leaving the block closes the connection, whatever is still to come."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, data, dict(headers or {}))
            yield connection.getresponse()
        finally:
            connection.close()

    def listed(self) -> list[Any]:
        """The rows of `/api/tags`, without the rows `NAME:latest` that repeat others."""
        return [row for row in self.get("/api/tags").json["models"] if "alias" not in row]

    def pull(self, name: str) -> dict[str, Any]:
        """Bring a model in; its last line must be success."""
        last = self.post("/api/pull", {"model": name}).lines[-1]
        assert last["status"] == "success", last
        return dict(last)

    def advice(self, model: str, **more: Any) -> Any:
        """The answer of `/lm/advise` for a model, which must be a success."""
        answer = self.post("/lm/advise", {"model": model} | more)
        assert answer.status == 200, answer.body
        return answer.json


def environment() -> dict[str, str]:
    """The environment of the tests, without any setting that could reach the daemon; Ollama's registry is nowhere."""
    clean = {name: value for name, value in os.environ.items() if name in _CLEAN}
    return clean | {"LM_OLLAMA_REGISTRY": "http://127.0.0.1:1"}


def alive(process: psutil.Process) -> bool:
    """Whether a process still runs; a zombie does not."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def allowed(seconds: float) -> float:
    """The seconds that a test may allow for work of `seconds` on an idle machine: more on a busy or a slow one."""
    waiting = os.getloadavg()[0] / len(os.sched_getaffinity(0))  # the mean of a minute: a burst is not in it yet
    return seconds * max(3.0, 2 * waiting) * 1.25 ** max(0, os.nice(0))  # the kernel's own factor for a step of nice


def wait_until(condition: Callable[[], Any], seconds: float, step: float = 0.01) -> float:
    """Wait until `condition()` is true; returns the seconds that it took. Fails after `allowed(seconds)`."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < allowed(seconds), f"not within {seconds} s"
        time.sleep(step)
    return time.monotonic() - began


def put_model(
    home: Path,
    name: str = "tiny",
    context: int = 2048,
    level: str = "F32",
    more: Mapping[str, tuple[int, ...]] | None = None,
    capabilities: tuple[str, ...] = ("completion",),
    **claimed: int,
) -> None:
    """Commit a GGUF of the right shape, all zeros, to the store of a home; `claimed` are sizes that it lies about.

    Its weights are F32, whatever `level` the manifest has; F32 counts as chosen automatically. `more` are further
    tensors, by name.
    """
    config = {
        "model_format": "gguf",
        "model_family": "llama",
        "model_families": ["llama"],
        "model_type": "1.0K",
        "file_type": level,
        "capabilities": list(capabilities),
        "context_length": context,
        "embedding_length": WIDTH,
        "lm": {"source": "test", "level": level, "reason": "a test wants it"},
    }
    with Store.open(home / "store") as store:
        title = name if level == "F32" else f"{name} {level}"
        data = _tiny(title, {"context_length": context} | claimed, more or {})
        params = {"temperature": 0.7, "stop": ["<end>"]}
        put(store, Name(LOCAL, LIBRARY, name, level), data, config, params, chosen=level == "F32")


def _tiny(name: str, claimed: Mapping[str, int], more: Mapping[str, tuple[int, ...]]) -> bytes:
    sizes = {
        "block_count": 1,
        "embedding_length": WIDTH,
        "feed_forward_length": WIDTH,
        "attention.head_count": 1,
        "attention.head_count_kv": 1,
    }
    metadata: dict[str, Any] = {"general.architecture": "llama", "general.name": name}
    metadata |= {f"llama.{key}": value for key, value in (sizes | dict(claimed)).items()}
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes = {"token_embd.weight": (WIDTH, 8), "output_norm.weight": (WIDTH,)}
    shapes |= {f"blk.0.{part}.weight": (WIDTH, WIDTH) for part in parts}
    shapes |= {f"blk.0.{part}.weight": (WIDTH,) for part in ("attn_norm", "ffn_norm")}
    shapes |= more
    tensors = layout(Tensor(tensor, shape, QuantType.F32) for tensor, shape in shapes.items())
    zeros = b"".join(bytes(align(tensor.nbytes, DEFAULT_ALIGNMENT)) for tensor in tensors)
    return encode_header(metadata, tensors) + zeros
