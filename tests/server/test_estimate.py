"""Predictions that learn: upwards at once, downwards slowly, kept from one daemon to the next; and what would fit."""

from __future__ import annotations

import asyncio
import json
import os
from itertools import takewhile
from pathlib import Path

import gguf
import numpy as np
import pytest

from benchmarks import shapes
from quant.gguf.header import read_file
from quant.levels.recipes import weights_bytes
from quant.plan import ModelPlan
from runtime.machine.fit import Need
from runtime.machine.hardware import usable_cpus
from runtime.machine.inspection import Probed
from runtime.machine.rates import Rates
from runtime.messages import CacheConfig
from server.library import Facts
from server.loaded.estimate import Estimator, anonymous_bytes, smaller
from tests.daemon import Daemon, wait_until

MB = 1_000_000


@pytest.fixture(scope="module")
def blob(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("estimate")
    with Daemon(home) as daemon:
        daemon.pull("demo")
    return max((home / "store" / "blobs").iterdir(), key=lambda path: path.stat().st_size)


def test_what_was_too_little_is_added_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = Estimator(tmp_path, ask=False)
    first.learn("d", "x", Need(100 * MB, 10 * MB, 20 * MB), 50 * MB)
    assert first.extra == {"d": 10 * MB}
    again = Estimator(tmp_path, ask=False)
    assert again.extra == {"d": 10 * MB}
    again.learn("d", "x", Need(100 * MB, 10 * MB, 30 * MB), 24 * MB)
    assert again.extra == {"d": 9 * MB}
    assert not caplog.text
    (tmp_path / "memory.json").write_text("[]")
    assert Estimator(tmp_path, ask=False).extra == {}
    assert "memory.json cannot be read" in caplog.text


def test_what_one_model_held_is_not_expected_of_another(tmp_path: Path, blob: Path) -> None:
    facts = Facts.of(read_file(blob))

    def predicted(estimator: Estimator, digest: str) -> int:
        return asyncio.run(estimator.need(digest, facts, 6 * MB, CacheConfig(1024))).compute

    estimator = Estimator(tmp_path, ask=False)
    before = predicted(estimator, "other")
    estimator.learn("read a long prompt", "x", Need(6 * MB, 1 * MB, 20 * MB), 400 * MB)
    assert predicted(estimator, "other") == before
    assert predicted(estimator, "read a long prompt") > before + 100 * MB
    for number in range(1000):
        estimator.learn(str(number), "x", Need(6 * MB, 1 * MB, 20 * MB), 22 * MB)
    assert len(estimator.extra) < 100 and (tmp_path / "memory.json").stat().st_size < 10_000


def test_llama_cpp_and_the_formulas_agree_on_the_cache(tmp_path: Path, blob: Path) -> None:
    facts = Facts.of(read_file(blob))
    asked, formula = (
        asyncio.run(Estimator(tmp_path, ask=ask).need("d", facts, 6 * MB, CacheConfig(1024))) for ask in (True, False)
    )
    assert asked.cache == formula.cache
    assert asked.compute == pytest.approx(formula.compute, rel=0.5)


def test_what_would_fit(blob: Path) -> None:
    header = read_file(blob)
    plan = ModelPlan.of(header)
    need = Need(weights_bytes(plan, "Q8_0"), MB, MB)
    assert smaller(plan, need, need.total) == "Q6_K"
    assert smaller(plan, need, weights_bytes(plan, "Q4_K_M") + 2 * MB) == "Q4_K_M"
    assert smaller(plan, need, MB) == ""


def test_what_a_process_holds() -> None:
    before = anonymous_bytes(os.getpid())
    block = bytearray(os.urandom(1)) * (64 * MB)
    after = anonymous_bytes(os.getpid())
    assert before is not None
    assert after is not None
    assert after - before > 0.9 * len(block)
    assert anonymous_bytes(1 << 22) is None


def prefer_the_first_token(path: Path) -> None:
    """Give a model of zeros at Q8_0 an output: a pull refuses one to which all tokens are equally likely."""
    ones = np.frombuffer(np.float16(1).tobytes() + bytes([1] * 32), np.uint8)  # a block: its scale, then 32 values
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path, "r+").tensors}
    tensors["output_norm.weight"][:] = 1
    for data in (tensors["token_embd.weight"], tensors["output.weight"][:1]):
        data[:] = np.tile(ones, data.shape[1] // len(ones))


@pytest.mark.slow
def test_answers_correct_the_predicted_speed(tmp_path: Path) -> None:
    path, cache = tmp_path / "large.gguf", tmp_path / "home" / "cache"
    shapes.write(path, shapes.llama(layers=4))
    prefer_the_first_token(path)
    fast = Probed({"Q8_0": 1e12}, 0, 1e-12)
    rates = Rates(cache, usable_cpus())
    rates.keep(fast)
    with Daemon(tmp_path / "home", runtime="fake") as daemon:  # which does not check that the model works
        name = daemon.pull(str(path))["name"]
    with Daemon(tmp_path / "home", runtime="llama") as daemon:
        ask = {"model": name, "prompt": [7, 8], "max_tokens": 40, "temperature": 0, "draft_num_predict": 0}
        for _ in range(2):
            assert daemon.post("/v1/completions", ask).json["usage"]["completion_tokens"] == 40
        wait_until(lambda: daemon.log.count("tokens/s predicted") == 2, 10)
    learned = rates.known()
    assert learned is not None
    assert learned.rates["Q8_0"] < 0.7 * fast.rates["Q8_0"]


@pytest.mark.slow
def test_a_pull_says_that_the_machine_is_measured_which_is_once(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    shapes.write(path, shapes.llama(layers=8), "F16")
    with Daemon(tmp_path / "home") as daemon:
        notes = []
        for level in ("Q8_0", "auto", "auto"):  # which level is best is asked by the second only
            with daemon.opened("POST", "/api/pull", {"model": f"{path}:{level}"}) as response:
                told = list(takewhile(lambda line: line["phase"] != "planned", map(json.loads, response)))
            notes.append([line["status"] for line in told if line["phase"] == "note"])
    said = [[text.partition(";")[0] for text in told if not text.startswith("compiling")] for told in notes]
    assert said == [[], ["measuring how fast this machine reads weights"], []]
