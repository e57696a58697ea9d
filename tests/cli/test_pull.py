"""`lm pull` with a real daemon and a slow hub: paused by Ctrl-C, left to the daemon, listed, removed."""

from __future__ import annotations

import io
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console

from cli import pulling
from cli.client import Client
from cli.pulling import _show_on
from registry.sources.opening import DEMO
from tests.cli.support import Cli
from tests.daemon import Daemon, wait_until
from tests.hub import Hub


@pytest.fixture(scope="module")
def lm(daemon: Daemon) -> Cli:
    return Cli.at(daemon.home, f"127.0.0.1:{daemon.port}")


def partials(lm: Cli) -> list[dict[str, Any]]:
    return json.loads(lm("list", "--partial", "--json").out)


def test_ctrl_c_pauses_and_the_next_pull_goes_on(lm: Cli, hub: Hub) -> None:
    hub.bandwidth = 1e6
    with lm.popen("pull", "org/demo:Q8_0") as process:
        wait_until(lambda: partials(lm), 20)
        process.send_signal(signal.SIGINT)
        said = process.communicate()[1].decode()
    assert process.returncode == 130
    assert "`lm pull hf.co/org/demo:Q8_0` goes on" in said and "`lm rm --partial hf.co/org/demo:Q8_0`" in said
    wait_until(lambda: not partials(lm)[0]["active"], 10)
    listed = lm("list", "--partial")
    assert "hf.co/org/demo:Q8_0" in listed.out and "paused" in listed.out
    assert "`lm pull hf.co/org/demo:Q8_0` goes on" in listed.err
    hub.bandwidth = None
    lines = [json.loads(line) for line in lm("pull", "org/demo:Q8_0", "--json").out.splitlines()]
    assert lines[-1]["status"] == "success"
    assert [line["resumed"] > 0 for line in lines if line["phase"] == "planned"] == [True]
    assert not partials(lm)


def test_the_hint_to_go_on_can_be_typed_into_a_shell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(client: object, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        raise KeyboardInterrupt
        yield body

    monkeypatch.setattr(pulling, "lines", interrupted)
    url = "https://h/x.gguf?a=1&b=2"
    with pytest.raises(KeyboardInterrupt):
        pulling.bring_in(cast(Client, None), {"model": url}, url)
    said = capsys.readouterr().err.replace("\n", " ")
    assert f"`lm pull '{url}'` goes on" in said


@pytest.mark.slow
def test_what_a_pull_was_begun_with_is_kept(lm: Cli, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    shutil.copytree(DEMO, odd)
    tokenizer = json.loads((odd / "tokenizer.json").read_text())
    split = {"type": "Split", "pattern": {"Regex": r"\p{L}{1,4}"}, "behavior": "Isolated", "invert": False}
    steps = [split, {"type": "ByteLevel", "use_regex": False}]
    (odd / "tokenizer.json").write_text(
        json.dumps(tokenizer | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}})
    )
    with Hub({"org/odd": odd}) as hub:
        mine = Cli({**lm.env, "HF_ENDPOINT": hub.url})
        hub.bandwidth = 1e6
        with mine.popen("pull", "org/odd", "--level", "Q5_K_M", "--pre", "smollm") as process:
            wait_until(lambda: partials(mine), 20)
            process.send_signal(signal.SIGINT)
        wait_until(lambda: not partials(mine)[0]["active"], 10)
        hub.bandwidth = None
        lines = [json.loads(line) for line in mine("pull", "org/odd", "--json").out.splitlines()]
    assert lines[0]["status"].startswith("going on with `hf.co/org/odd:Q5_K_M`, which was paused; `hf.co/org/odd:auto`")
    assert [line["resumed"] > 0 for line in lines if line["phase"] == "planned"] == [True]
    assert lines[-1]["name"] == "hf.co/org/odd:Q5_K_M"
    assert not partials(mine)


def test_a_detached_pull_is_left_once_its_level_is_known_and_ended_by_rm(lm: Cli, hub: Hub) -> None:
    hub.bandwidth = 1e6
    done = lm("pull", "org/demo:Q6_K", "--detach")
    assert done.code == 0 and "Q6_K: asked for" in done.err and "the daemon goes on" in done.err
    wait_until(lambda: partials(lm), 20)
    assert "under way" in lm("list", "--partial").out
    assert lm("rm", "org/demo:Q6_K").code == 0
    assert not partials(lm)
    assert lm("rm", "org/demo:Q6_K").code == 3
    hub.bandwidth = None


@pytest.mark.slow
def test_stop_pauses_a_pull_that_the_daemon_was_left_with(lm: Cli, hub: Hub) -> None:
    hub.bandwidth = 1e6
    lm("pull", "org/demo:Q5_K_M", "--detach")
    wait_until(lambda: partials(lm), 20)
    with lm.popen("pull", "org/demo:Q5_K_M") as onlooker:
        assert onlooker.stderr and b"`lm stop hf.co/org/demo:Q5_K_M` pauses it" in onlooker.stderr.readline()
        onlooker.send_signal(signal.SIGINT)
    assert [row["active"] for row in partials(lm)] == [True]
    done = lm("stop", "org/demo:Q5_K_M")
    assert done.code == 0 and done.err.startswith("paused the pull of `hf.co/org/demo:Q5_K_M`")
    assert [row["active"] for row in partials(lm)] == [False]
    hub.bandwidth = None
    lines = [json.loads(line) for line in lm("pull", "org/demo:Q5_K_M", "--json").out.splitlines()]
    assert [line["resumed"] > 0 for line in lines if line["phase"] == "planned"] == [True]
    assert lm("stop", "org/demo:Q5_K_M").err == "`hf.co/org/demo:Q5_K_M` was not loaded\n"


def test_hub_and_token_of_the_caller_reach_a_daemon_that_runs_and_no_file(lm: Cli, hub: Hub) -> None:
    with Hub({"org/private": DEMO}, token="hf_of_the_caller") as private:
        own = {"HF_ENDPOINT": private.url, "HF_TOKEN": "hf_of_the_caller"}
        mine = Cli({**lm.env, **own})
        assert mine("fit", "org/private").code == 0
        done = mine("pull", "org/private:Q8_0")
        assert done.code == 0, done.err
        without = Cli({**lm.env, "HF_ENDPOINT": private.url})("pull", "org/private:Q6_K")
        assert without.code == 3 and "HF_TOKEN" in without.err
    assert lm("pull", "org/private:Q6_K").code == 3  # the daemon's own hub has no such model
    written = [path.read_bytes() for path in Path(lm.env["LM_HOME"]).rglob("*") if path.is_file()]
    assert len(written) > 5 and not any(b"hf_of_the_caller" in data for data in written)


@pytest.mark.slow
def test_another_level_of_a_folder_needs_its_name_only(lm: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "house"
    shutil.copytree(DEMO, folder)
    assert lm("pull", f"{folder}:Q8_0").code == 0
    done = lm("pull", "house", "--level", "q4_k_m")
    assert done.code == 0 and "`house:Q4_K_M` is here" in done.err, done.err
    assert lm("run", "house:Q3_K_M", "hello").code == 0
    shutil.rmtree(folder)
    gone = lm("pull", "house:Q2_K")
    assert gone.code == 3 and f"there is no folder `{folder}`" in gone.err
    assert "did you mean `house`" in lm("pull", "mouse:Q2_K").err


def test_a_hub_that_is_not_there_is_said_at_once(lm: Cli) -> None:
    done = Cli({**lm.env, "HF_ENDPOINT": "http://127.0.0.1:1"})("pull", "org/demo")
    said = done.err.splitlines()
    assert said[1:3] == [
        "`127.0.0.1` cannot be reached: connection refused; trying again",
        "Error: `127.0.0.1` cannot be reached: connection refused",
    ]
    assert done.code == 1 and "`demo` and folders need no network" in said[3]


@pytest.mark.parametrize("rate", ["fast", "10", "-5M", "5X", "1e9"])
def test_a_rate_that_is_none_is_said(lm: Cli, rate: str) -> None:
    done = lm("pull", "org/demo", f"--limit-rate={rate}")
    assert done.code == 2 and "is no rate" in done.err


def test_a_rate_is_kept(lm: Cli, tmp_path: Path) -> None:
    done = lm("pull", "org/demo:F16", "--limit-rate", "50M", "--json")
    assert json.loads(done.out.splitlines()[-1])["status"] == "success"


def test_a_terminal_shows_every_note_and_one_bar_for_compiling_and_quantizing() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    figures = {"completed": 0, "total": 100, "rate": 0, "eta": None}
    _show_on(
        console,
        [
            {"phase": "note", "status": "the first note"},
            {"phase": "note", "status": "the second note"},
            {"phase": "compiling", "status": "compiling kernels for Q4_K (3 of 5)", **figures},
            {"phase": "writing", "status": "quantizing", **figures, "completed": 100},
            {"phase": "done", "status": "success"},
        ],
    )
    shown = screen.getvalue()
    assert "the first note" in shown and "the second note" in shown
    assert "compiling kernels for Q4_K (3 of 5)" in shown
    assert "quantizing" in shown.replace("\r", "\n").splitlines()[-2] and "compiling" not in shown.splitlines()[-2]
