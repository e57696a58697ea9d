"""`lm tune`: goals in, measured levels out, and the bare name means the best."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.support import Cli
from tests.daemon import Daemon, put_model


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    home = tmp_path_factory.mktemp("tune")
    put_model(home)
    put_model(home, "vectors", capabilities=("embedding",))
    with Daemon(home) as daemon:
        yield Cli.at(home, f"127.0.0.1:{daemon.port}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tiny", "--goal", "kl>=1"], "kl is better the lower"),
        (["tiny", "--goal", "kl<=1", "--max-time", "soon"], "no length of time"),
        (["tiny", "--goal", "kl<=1", "--picture", "x.gif"], "ends neither"),
        (["tiny", "--goal", "kl<=1", "--text", "nowhere.txt"], "cannot be read"),
        (["tiny"], "--goal"),
        (["nothing-here", "--goal", "kl<=1"], "nothing-here"),
        (["vectors", "--goal", "kl<=1"], "writes no text"),
    ],
    ids=range(7),
)
def test_what_cannot_be_tuned_is_said(lm: Cli, arguments: list[str], said: str) -> None:
    done = lm("tune", *arguments)
    assert done.code and said in done.err and "Traceback" not in done.err, done


@pytest.mark.slow
def test_a_tune_makes_what_it_must_keeps_the_best_and_the_next_one_measures_nothing(tmp_path: Path) -> None:
    with Daemon(tmp_path, runtime="llama") as daemon:
        daemon.pull("demo:Q8_0")
        lm = Cli.at(tmp_path, f"127.0.0.1:{daemon.port}")
        goal = ("--goal", "size<=4.5MB, kl<=0.1", "--effort", "quick", "--windows", "2", "--json")
        first = lm("tune", "demo", *goal)
        told = json.loads(first.out)
        levels = {row["level"]: row for row in told["levels"]}
        assert told["best"] == "demo:Q5_K_M" and told["finished"]
        figures = levels["Q5_K_M"]["figures"]
        assert figures["kl"] <= 0.1 and figures["size"] <= 4.5e6 and figures["tokens/s"] > 0 and figures["memory"] > 0
        assert "the goal is size <= 4.5 MB" in levels["Q8_0"]["why_not"] and not levels["Q8_0"]["figures"]
        assert levels["Q2_K"]["why_not"] == "is smaller than Q5_K_M, which meets the goals"
        assert {row["name"] for row in daemon.listed()} == {"demo:Q8_0", "demo:Q5_K_M"}
        assert json.loads(lm("default", "demo", "--json").out)["default"] == "demo:Q5_K_M"
        again = lm("tune", "demo", *goal)
        assert json.loads(again.out)["best"] == "demo:Q5_K_M" and json.loads(again.out)["levels"][2]["recorded"]
        assert "its speed" not in again.err and "its quality" not in again.err
        (tmp_path / "short.txt").write_text("Once upon a time")
        short = lm("tune", "demo", "--goal", "kl<=1", "--text", str(tmp_path / "short.txt"))
        assert short.code == 1 and "one window takes 512" in short.err and "its speed" not in short.err
        made = daemon.post("/lm/quantize", {"model": "demo", "level": "Q4_K_M", "effort": "importance"}).lines[-1]
        assert made["status"] == "success"
        other = lm("tune", "demo", "--goal", "min size", "--try", "Q4_K_M", *goal[2:])
        assert json.loads(other.out)["best"] == "demo:Q4_K_M"
        assert daemon.post("/api/show", {"model": "demo:Q4_K_M"}).json["lm"]["effort"] == "importance"
        unknown = lm("tune", "demo", "--goal", "kl<=1", "--try", "Q9_Z")
        assert unknown.code == 2 and "Q9_Z" in unknown.err
        nothing = lm("tune", "demo", "--goal", "kl<=0.00001, size<=4.5MB", *goal[2:])
        assert nothing.code == 1 and "Q5_K_M comes nearest" in nothing.err
