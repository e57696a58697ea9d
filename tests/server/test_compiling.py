"""Kernels that a pull needs are compiled in several processes, and the bar says how far that is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from server.pulls.compiling import share
from server.pulls.frames import Progress
from server.pulls.lines import frame_line, phase_line, with_digest

WARM = """
import sys, pathlib
from quant.kernels import blocks
from quant.kernels.vectors import compiler
from server.pulls.compiling import warm
blocks.configure(pathlib.Path(sys.argv[1]))
told = []
warm(["F16", "Q8_0"], 2, lambda done, total: told.append((done, total)))
print(told[0], told[-1], told.count((0, 3)), compiler.compilations())
"""


def test_shares_take_about_the_same_time() -> None:
    names = ["plain.widen", "affine._search", "k._pack_affine", "symmetric._search", "k._pack_symmetric"]
    shares = share(names, 2)
    assert sorted(name for own in shares for name in own) == sorted(names)
    assert all(sum("search" in name for name in own) == 1 for own in shares)
    assert share(names, 1) == [sorted(names, key=lambda name: ("search" in name, name), reverse=True)]
    assert share([], 2) == []


def test_the_line_of_a_pull_names_what_is_compiled() -> None:
    line = frame_line(Progress("compiling", 0, 100, doing="compiling kernels for Q4_K (3 of 5)"))
    assert (line["status"], line["phase"], line["total"]) == ("compiling kernels for Q4_K (3 of 5)", "compiling", 100)


def test_compiling_and_quantizing_are_one_bar_of_ollamas_clients() -> None:
    """A second bar would stand at 0 for ever, for the last figures of compiling are those of a file not begun."""
    phases = [Progress("compiling", 0, 100, doing="compiling kernels for Q4_K (3 of 5)"), Progress("writing", 100, 100)]
    bars = [with_digest("demo", frame_line(frame))["digest"] for frame in phases]
    assert bars[0] == bars[1]
    assert "digest" not in with_digest("demo", phase_line("committing"))


@pytest.mark.slow
def test_other_processes_compile_and_this_one_only_loads(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", WARM, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "(0, 3) (3, 3) 1 0"
