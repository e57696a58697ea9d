"""What real workers die of, told over HTTP within a second; the daemon and the model beside it notice nothing."""

from __future__ import annotations

import http.client
import json
import resource
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from benchmarks import synthetic
from quant.types import QuantType
from registry.names import LIBRARY, LOCAL, Name
from registry.store.store import Store
from tests.daemon import Answer, Daemon, alive, allowed, wait_until
from tests.quant.support import DEMO
from tests.runtime.conftest import convert
from tests.storing import put

ABORTS = "aborts"
# A norm of whole numbers, which llama.cpp loads and cannot multiply with.
NORM = b"output_norm.weight"
CONFIG = {
    "model_format": "gguf",
    "model_family": "llama",
    "model_families": ["llama"],
    "model_type": "1.0K",
    "file_type": "F32",
    "capabilities": ["completion"],
    "context_length": 2048,
    "embedding_length": 256,
    "lm": {"source": "test", "level": "F32", "reason": "a test wants it"},
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """Two models that answer, and one on which llama.cpp aborts."""
    home = tmp_path_factory.mktemp("survival")
    data = convert(DEMO, home / "model.gguf", "F32").read_bytes()
    at = data.index(NORM) + len(NORM) + 4 + 8  # behind the count of dimensions and the only one
    lie = data[:at] + struct.pack("<I", QuantType.I32.id) + data[at + 4 :]
    with Store.open(home / "store") as store:
        for name, content in (("one", data), ("two", data + bytes(32)), (ABORTS, lie)):
            put(store, Name(LOCAL, LIBRARY, name, "F32"), content, CONFIG)
    with Daemon(home, runtime="llama") as daemon:
        yield daemon


def ask(daemon: Daemon, model: str, tokens: int = 8, prompt: str = "Once upon a time") -> Answer:
    # A draft may change a text where two tokens are almost equally likely, and beside others it comes at other places.
    options = {"num_predict": tokens, "temperature": 0, "draft_num_predict": 0}
    return daemon.post("/api/generate", {"model": model, "prompt": prompt, "stream": False, "options": options})


def pid_of(daemon: Daemon, model: str) -> int:
    rows = daemon.get("/api/ps").json["models"]
    return next(int(row["pid"]) for row in rows if row["name"].startswith(model))


@contextmanager
def beside(daemon: Daemon, model: str) -> Iterator[None]:
    """`model` writes a long answer while the block runs, and it is the same as when nothing happens."""
    calm = ask(daemon, model, 300).json["response"]
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(ask(daemon, model, 300)))
    thread.start()
    yield
    thread.join()
    assert answers[0].json["response"] == calm


def dead_after(process: psutil.Process) -> float:
    wait_until(lambda: not alive(process), 100, step=0.001)
    return time.monotonic()


def test_a_file_on_which_llama_cpp_aborts(daemon: Daemon) -> None:
    with beside(daemon, "two"):
        for _ in range(2):
            answer = ask(daemon, ABORTS)
            assert (answer.status, answer.json["code"]) == (500, "worker_died"), answer.json
            assert "SIGABRT" in answer.json["error"]


def test_a_worker_without_memory(daemon: Daemon) -> None:
    assert ask(daemon, "one").status == 200
    worker = psutil.Process(pid_of(daemon, "one"))
    with beside(daemon, "two"):
        size = worker.memory_info().vms
        resource.prlimit(worker.pid, resource.RLIMIT_AS, (size, size))
        died: list[float] = []
        watch = threading.Thread(target=lambda: died.append(dead_after(worker)))
        watch.start()
        # What needs more memory than the process may have: a prompt, its tokens, a state copied out.
        answers = []
        while alive(worker):
            answers.append(ask(daemon, "one", 1, f"{len(answers)} " + "lorem ipsum " * 90_000))
        told = time.monotonic()
        watch.join()
        assert told - died[0] < allowed(1)
        assert answers[-1].json["code"] == "worker_died", answers[-1].body
        assert "memory may be short" in answers[-1].json["hint"]
    assert ask(daemon, "one").json["eval_count"] == 8


@pytest.mark.slow
def test_a_client_that_leaves_a_long_prompt_makes_way_at_once(tmp_path: Path) -> None:
    shape = ["--layers", "6", "--width", "1024", "--feed-forward", "4096", "--heads", "16"]
    synthetic.make(tmp_path / "wide", synthetic.parser().parse_args([str(tmp_path / "wide"), *shape]))
    with Daemon(tmp_path / "home", runtime="llama") as daemon:
        daemon.pull(str(tmp_path / "wide"))
        (row,) = daemon.listed()
        model = row["name"]
        whole = ask(daemon, model, 1, "word " * 1900).json["prompt_eval_duration"] / 1e9
        worker = psutil.Process(pid_of(daemon, model))
        for path, body in (("generate", {"prompt": "other " * 1900}), ("embed", {"input": "more " * 1900})):
            connection = http.client.HTTPConnection("127.0.0.1", daemon.port)
            spent = sum(worker.cpu_times()[:2])
            connection.request("POST", f"/api/{path}", json.dumps({"model": model, **body}))
            wait_until(lambda until=spent + 0.05 * whole: sum(worker.cpu_times()[:2]) >= until, 60, step=0.001)
            connection.close()
            began = time.monotonic()
            assert ask(daemon, model, 1, "short").json["eval_count"] == 1
            assert time.monotonic() - began < allowed(0.25 * whole)


@pytest.mark.slow
def test_a_worker_that_hangs(daemon: Daemon) -> None:
    body = {"model": "one", "prompt": "Once", "options": {"num_predict": 2000, "seed": 1}}
    with beside(daemon, "two"), daemon.opened("POST", "/api/generate", body) as response:
        assert json.loads(response.readline())["response"]
        worker = psutil.Process(pid_of(daemon, "one"))
        worker.suspend()
        last = json.loads(response.read().splitlines()[-1])
        assert not alive(worker)
        assert last["code"] == "worker_died"
        assert "no sign of life" in last["error"]
    assert ask(daemon, "one").json["eval_count"] == 8
