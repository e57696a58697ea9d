"""The model of a step's time; the rates that are kept of this machine, corrected by answers, and measured again."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import pytest

from quant.levels.recipes import LEVELS
from runtime.machine import fit
from runtime.machine.inspection import Probed
from runtime.machine.rates import Rates
from runtime.machine.step_time import FAMILY, Reads, seconds

PROBED = Probed({"Q8_0": 10e9, "Q4_K": 5e9, "F16": 20e9}, layer_seconds=1e-4, head_seconds=1e-9)


def test_every_type_of_every_level_has_a_rate() -> None:
    assert {level.base.name for level in LEVELS.values()} <= set(FAMILY)


def test_seconds_are_weights_layers_and_attention() -> None:
    reads = Reads({"Q8_0": 10**9, "Q4_K": 10**9, "F32": 2 * 10**9, "I8": 5 * 10**9}, 10, 1000)
    assert seconds(PROBED, reads) == pytest.approx(0.1 + 0.2 + 0.1 + 1.0 + 0.001 + fit.STEP_SECONDS)
    assert seconds(PROBED, reads, 1000) - seconds(PROBED, reads) == pytest.approx(1e-3)


def test_attention_grows_with_heads_and_with_a_power_of_the_row() -> None:
    probed = msgspec.structs.replace(PROBED, row_power=0.5)
    times = [seconds(probed, Reads({}, 0, heads, row), 1000) for heads, row in ((8, 2048), (8, 512), (0, 1))]
    assert times[0] - times[2] == pytest.approx(8e-6)
    assert times[1] - times[2] == pytest.approx(4e-6)


def test_rates_are_kept_by_processor_and_threads(tmp_path: Path) -> None:
    rates, others = Rates(tmp_path, 2), Rates(tmp_path, 3)
    assert rates.known() is None
    rates.keep(PROBED)
    assert Rates(tmp_path, 2).known() == PROBED
    assert others.known() is None
    others.keep(Probed({}, layer_seconds=0, head_seconds=0))  # makes no sense
    assert others.known() is None
    known = rates.bandwidth()
    assert Rates(tmp_path, 2).bandwidth() == pytest.approx(known, rel=1e-6)


def test_answers_correct_the_families_that_they_read(tmp_path: Path) -> None:
    rates = Rates(tmp_path, 2)
    assert rates.learn(Reads({"Q8_0": 10**9}, 0, 0), 0, 0.1) is None
    rates.keep(PROBED)
    mixed = Reads({"Q8_0": 10**9, "Q4_K": 10**8}, 10, 1000)
    true = seconds(PROBED, mixed, 500) * 1.3
    for _ in range(40):
        rates.learn(mixed, 500, true)
    learned = rates.known()
    assert learned is not None
    assert seconds(learned, mixed, 500) == pytest.approx(true, rel=0.02)
    assert learned.rates["Q8_0"] < 0.85 * PROBED.rates["Q8_0"] < learned.rates["Q4_K"] * 2
    assert learned.rates["F16"] == PROBED.rates["F16"]
    once = rates.learn(mixed, 500, true * 10)
    assert once == pytest.approx(true, rel=0.02)
    after = rates.known()
    assert after is not None
    assert seconds(after, mixed, 500) < 2 * true
    rates.corrections_file.write_text('{"Q8_0": 1e9}')  # makes no sense
    assert rates.known() == PROBED
    rates.learn(mixed, 500, true)
    rates.keep(PROBED)
    assert rates.known() == PROBED


def test_a_probe_of_a_busy_machine_is_taken_again(tmp_path: Path) -> None:
    rates = Rates(tmp_path, 2)
    assert rates.stale()
    rates.keep(PROBED)
    assert not rates.stale()
    rates.keep(msgspec.structs.replace(PROBED, steady=False))
    assert not rates.stale()
    os.utime(rates.speed_file, (rates.speed_file.stat().st_mtime - 3600,) * 2)
    assert rates.stale()
    assert rates.known() is not None
    # A clock that was set back by a day must not keep the rates of a busy machine for a day.
    os.utime(rates.speed_file, (time.time() + 86_400,) * 2)
    assert rates.stale()
    rates.keep(PROBED)
    os.utime(rates.speed_file, (time.time() + 86_400,) * 2)
    assert not rates.stale()
    assert Rates(tmp_path, 2, "a card").known() is None


def test_rates_that_cannot_be_kept_are_told_and_cost_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    rates = Rates(tmp_path / "file", 1)
    rates.keep(PROBED)
    assert rates.known() is None
    assert rates.bandwidth() > 0
    assert "cannot be kept" in caplog.text


@pytest.mark.slow
def test_a_probe_measures_and_is_kept(tmp_path: Path) -> None:
    rates = Rates(tmp_path, 1)
    probed = rates.measure()
    assert probed is not None
    assert rates.known() == probed
    assert all(1e7 < rate < 1e12 for rate in probed.rates.values())
