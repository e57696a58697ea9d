"""A llama.cpp that was compiled for another processor: named as such, and never taken for a fault of the model."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

from runtime.machine.inspection import Refused
from runtime.processor import FOREIGN
from server.config import Config
from server.doctor.findings import examine
from tests.daemon import Daemon, put_model
from tests.server.test_doctor import SOUND


def test_a_worker_that_meets_an_unknown_instruction_says_so(tmp_path: Path) -> None:
    put_model(tmp_path)
    with (
        Daemon(tmp_path, script={"tokens": ["word "] * 100_000, "delay": 0.01}) as daemon,
        daemon.opened("POST", "/api/generate", {"model": "tiny", "prompt": "x"}) as response,
    ):
        response.readline()
        (worker,) = daemon.workers()
        os.kill(worker, signal.SIGILL)
        assert FOREIGN in response.read().decode()


def test_it_is_no_fault_of_the_file() -> None:
    assert Refused.crash("SIGILL") == Refused(FOREIGN)
    assert Refused.crash("SIGSEGV").unloadable


def test_the_doctor_fails_and_says_what_to_do() -> None:
    findings = examine(Config.load({"home": "/home/x/.lm"}, {}), replace(SOUND, llama=Refused(FOREIGN)))
    (finding,) = [each for each in findings if each.check == "llama.cpp"]
    assert finding.state == "fail"
    assert "another processor" in finding.found
    assert "pip install" in finding.hint
