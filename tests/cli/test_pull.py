"""`lm pull` with a real daemon and a slow hub: paused by Ctrl-C, left to the daemon, listed, removed."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.sources import DEMO
from tests.cli.support import Cli
from tests.daemon import Daemon, wait_until
from tests.hub import Hub


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub({"org/demo": DEMO}) as hub:
        yield hub


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory, hub: Hub) -> Iterator[Cli]:
    home = tmp_path_factory.mktemp("home")
    with Daemon(home, env={"HF_ENDPOINT": hub.url}) as daemon:
        yield Cli.at(home, f"127.0.0.1:{daemon.port}")


def partials(lm: Cli) -> list[dict[str, Any]]:
    return json.loads(lm("list", "--partial", "--json").out)


def test_ctrl_c_pauses_and_the_next_pull_goes_on(lm: Cli, hub: Hub) -> None:
    hub.bandwidth = 1e6
    with lm.popen("pull", "org/demo:Q8_0") as process:
        wait_until(lambda: partials(lm), 20)
        process.send_signal(signal.SIGINT)
        said = process.communicate()[1].decode()
    assert process.returncode == 130
    assert "`lm pull hf.co/org/demo:Q8_0` goes on" in said and "`lm rm hf.co/org/demo:Q8_0`" in said
    wait_until(lambda: not partials(lm)[0]["active"], 10)
    listed = lm("list", "--partial")
    assert "hf.co/org/demo:Q8_0" in listed.out and "paused" in listed.out
    assert "`lm pull hf.co/org/demo:Q8_0` goes on" in listed.err
    hub.bandwidth = None
    lines = [json.loads(line) for line in lm("pull", "org/demo:Q8_0", "--json").out.splitlines()]
    assert lines[-1]["status"] == "success"
    assert [line["resumed"] > 0 for line in lines if line["phase"] == "planned"] == [True]
    assert not partials(lm)


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


@pytest.mark.parametrize("rate", ["fast", "10", "-5M", "5X", "1e9"])
def test_a_rate_that_is_none_is_said(lm: Cli, rate: str) -> None:
    done = lm("pull", "org/demo", f"--limit-rate={rate}")
    assert done.code == 2 and "is no rate" in done.err


def test_a_rate_is_kept(lm: Cli, tmp_path: Path) -> None:
    done = lm("pull", "org/demo:F16", "--limit-rate", "50M", "--json")
    assert json.loads(done.out.splitlines()[-1])["status"] == "success"
