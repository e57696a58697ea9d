"""`lm compress`: lower levels and cuts side by side, by measured figures, and the best one stays."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks import mixture
from tests.cli.support import Cli
from tests.daemon import Daemon
from tests.quant.support import DEMO

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    folder = tmp_path_factory.mktemp("mixture") / "mixed"
    mixture.make(DEMO, folder)
    home = tmp_path_factory.mktemp("compress")
    with Daemon(home, runtime="llama") as daemon:
        daemon.pull(f"{folder}:Q8_0")
        yield Cli.at(home, f"127.0.0.1:{daemon.port}")


GOAL = ("--effort", "quick", "--windows", "2", "--json")


def run(lm: Cli, *arguments: str) -> tuple[dict[str, Any], str]:
    """The answer of a command that takes long, and its notes."""
    process = lm.popen("compress", "mixed", *arguments, stdin=subprocess.DEVNULL)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err.decode()
    return json.loads(out), err.decode()


def test_experts_without_work_go_before_bits_do(lm: Cli) -> None:
    plan = json.loads(lm("compress", "mixed", "--goal", "max tokens/s", "--dry-run", "--json").out)
    sizes = {row["level"]: row["predicted"]["size"] for row in plan["levels"]}
    assert "Q8_0 without 50% of the experts" in sizes and not any(row["figures"] for row in plan["levels"])
    wanted = sizes["Q8_0 without 50% of the experts"] * 1.02
    told, notes = run(lm, "--goal", f"size<={wanted / 1e6:.3f}MB", *GOAL)
    rows = {row["level"]: row for row in told["levels"]}
    ladder = [row for row in told["levels"] if "without" not in row["level"] and row["figures"].get("kl")]
    best = rows["Q8_0 without 50% of the experts"]
    assert ladder and not best["why_not"], notes
    assert best["figures"]["kl"] < min(row["figures"]["kl"] for row in ladder) / 3
    assert "experts" in told["best"] and told["best"] in lm("list").out
    assert json.loads(lm("default", "mixed", "--json").out)["default"].endswith(":Q8_0")
    again, notes = run(lm, "--goal", f"size<={wanted / 1e6:.3f}MB", *GOAL)
    assert again["best"] == told["best"] and "its quality" not in notes


def test_where_the_ladder_wins_the_level_is_made(lm: Cli) -> None:
    told, _ = run(lm, "--goal", "kl<=0.1, min size", "--try", "quantize", *GOAL)
    assert told["best"].startswith("mixed:Q") and not any("without" in row["level"] for row in told["levels"])
    assert json.loads(lm("default", "mixed", "--json").out)["default"] == told["best"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--goal", "size>=1GB"], "better the lower"),
        (["--goal", "size<=1GB", "--try", "magic"], "no technique"),
        (["--goal", "size<=1KB", "--dry-run"], "meets the goals"),
        (["--goal", "size<=1GB", "--for", "klingon"], "klingon"),
        (["--goal", "size<=1GB", "--for", "nowhere.txt"], "no file"),
    ],
    ids=range(5),
)
def test_what_cannot_be_compressed_is_said(lm: Cli, arguments: list[str], said: str) -> None:
    done = lm("compress", "mixed", *arguments)
    assert done.code and said in done.err and "Traceback" not in done.err, done
