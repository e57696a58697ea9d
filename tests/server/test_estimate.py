"""Predictions that learn: upwards at once, downwards slowly, kept from one daemon to the next; and what would fit."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from quant.gguf import read_file
from quant.recipes import sizes
from runtime.fit import Need
from server.choosing import plan_of
from server.estimate import Estimator, held, smaller
from server.library import Facts
from tests.daemon import Daemon

MB = 1_000_000


@pytest.fixture(scope="module")
def blob(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("estimate")
    with Daemon(home) as daemon:
        daemon.pull("demo")
    return max((home / "store" / "blobs").iterdir(), key=lambda path: path.stat().st_size)


def test_what_was_too_little_is_added_and_kept(tmp_path: Path) -> None:
    first = Estimator(tmp_path, ask=False)
    first.learn("x", Need(100 * MB, 10 * MB, 20 * MB), 50 * MB)
    assert first.extra == 10 * MB
    again = Estimator(tmp_path, ask=False)
    assert again.extra == 10 * MB
    again.learn("x", Need(100 * MB, 10 * MB, 30 * MB), 24 * MB)
    assert again.extra == 9 * MB
    (tmp_path / "memory.json").write_text("[]")
    assert Estimator(tmp_path, ask=False).extra == 0


def test_llama_cpp_and_the_formulas_agree_on_the_cache(tmp_path: Path, blob: Path) -> None:
    facts = Facts.of(read_file(blob))
    asked, formula = (
        asyncio.run(Estimator(tmp_path, ask=ask).need("d", facts, 6 * MB, 1024, 8, "F16")) for ask in (True, False)
    )
    assert asked.cache == formula.cache
    assert asked.compute == pytest.approx(formula.compute, rel=0.5)


def test_what_would_fit(blob: Path) -> None:
    header = read_file(blob)
    facts, plan = Facts.of(header), plan_of(header)
    need = Need(sizes(plan, "Q8_0"), MB, MB)
    assert smaller(facts, need, need.total) == "Q6_K"
    assert smaller(facts, need, sizes(plan, "Q4_K_M") + 2 * MB) == "Q4_K_M"
    assert smaller(facts, need, MB) == ""


def test_what_a_process_holds() -> None:
    before = held(os.getpid())
    block = bytearray(os.urandom(1)) * (64 * MB)
    assert held(os.getpid()) - before > 0.9 * len(block)
    assert held(1 << 22) == 0
