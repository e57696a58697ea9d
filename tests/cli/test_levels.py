"""Several levels of one model at the terminal: which one a bare name means, and what `rm` and `stop` do with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.support import Cli
from tests.daemon import Daemon, put_model, wait_until

LEVELS = ("F32", "Q8_0", "Q4_0")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("levels")
    for name in ("tale", "other", "gone", "held"):
        for level in LEVELS:
            put_model(home, name, level=level)
    put_model(home, "single", level="Q8_0")
    with Daemon(home, script={"tokens": ["a"] * 2000, "delay": 0.01}) as running:
        yield running


@pytest.fixture(scope="module")
def lm(daemon: Daemon) -> Cli:
    return Cli.at(daemon.home, f"127.0.0.1:{daemon.port}")


def marked(lm: Cli) -> set[str]:
    return {line.split()[0] for line in lm("list").out.splitlines() if line.endswith("yes")}


def here(lm: Cli, name: str) -> set[str]:
    return {row["name"] for row in json.loads(lm("list", "--json").out) if row["name"].startswith(f"{name}:")}


def loaded(daemon: Daemon) -> set[str]:
    return {row["name"] for row in daemon.get("/api/ps").json["models"]}


def test_a_bare_name_is_pinned_marked_and_said(lm: Cli, daemon: Daemon) -> None:
    assert "tale:F32" in marked(lm) and "single:Q8_0" not in marked(lm)
    assert "`tale` means `tale:F32`" in lm("default", "tale").err
    assert lm("default", "tale:q8_0").code == 0
    assert "tale:Q8_0" in marked(lm) and "tale:F32" not in marked(lm)
    asked = lm("run", "tale", "hi", "--max-tokens", "1")
    assert asked.code == 0 and asked.out == "a\n"
    assert "`tale` means `tale:Q8_0`: `lm default` says so" in asked.err
    assert "means" not in lm("run", "tale:Q4_0", "hi", "--max-tokens", "1").err
    for app in ({"model": "tale"}, {"model": "tale:latest"}):
        assert daemon.post("/api/show", app).json["details"]["quantization_level"] == "Q8_0"
    assert "tale:F32" in lm("default", "tale:auto").err
    assert daemon.post("/api/show", {"model": "tale"}).json["details"]["quantization_level"] == "F32"


def test_pinning_what_is_not_here_is_refused(lm: Cli) -> None:
    assert lm("default", "tale:Q2_K").code == 3
    assert lm("default", "nothing").code == 3
    assert "`single` means `single:Q8_0`: it is the only level here" in lm("default", "single").err


def test_removing_a_bare_name_never_removes_the_wrong_level(lm: Cli, daemon: Daemon) -> None:
    refused = lm("rm", "gone")
    assert refused.code == 2
    assert all(f"`gone:{level}`" in refused.err for level in LEVELS) and "--all" in refused.err
    answer = daemon.ask("DELETE", "/api/delete", {"model": "gone"})
    assert (answer.status, answer.json["code"]) == (409, "several_levels")
    assert here(lm, "gone") == {f"gone:{level}" for level in LEVELS}
    assert lm("rm", "gone:Q4_0").code == 0
    assert here(lm, "gone") == {"gone:F32", "gone:Q8_0"}
    removed = lm("rm", "--all", "gone")
    assert removed.code == 0 and "gone:F32" in removed.err and "gone:Q8_0" in removed.err
    assert not here(lm, "gone")
    assert lm("rm", "gone").code == 3


def test_stop_unloads_all_levels_of_a_name_and_several_names(lm: Cli, daemon: Daemon) -> None:
    for name in ("tale:F32", "tale:Q8_0", "other:Q4_0"):
        daemon.post("/api/generate", {"model": name})
    stopped = lm("stop", "tale", "other:F32", "nothing")
    assert stopped.code == 3
    assert "stopped `tale:F32`" in stopped.err and "stopped `tale:Q8_0`" in stopped.err
    assert "`other:F32` was not loaded" in stopped.err and 'model "nothing" not found' in stopped.err
    assert loaded(daemon) == {"other:Q4_0"}
    daemon.post("/api/generate", {"model": "tale:F32"})
    everything = lm("stop", "--all")
    assert everything.code == 0 and "tale:F32" in everything.err and "other:Q4_0" in everything.err
    assert not loaded(daemon)
    assert "nothing is loaded" in lm("stop", "--all").err
    assert lm("stop", "--all", "tale").code == 2


def test_stop_in_the_middle_of_an_answer_says_that_the_answer_goes_on(lm: Cli, daemon: Daemon) -> None:
    with daemon.opened("POST", "/api/generate", {"model": "held:F32", "prompt": "hi"}) as answer:
        answer.readline()
        assert "`held:F32` still answers" in lm("stop", "held").err
        assert "held:F32" in loaded(daemon)
    wait_until(lambda: "held:F32" not in loaded(daemon), 5)


def test_several_names_are_pulled_one_after_the_other(lm: Cli) -> None:
    pulled = lm("pull", "/nowhere/one", "/nowhere/two")
    assert pulled.code == 3
    assert "/nowhere/one" in pulled.err and "/nowhere/two" in pulled.err


def test_a_broken_config_keeps_nobody_from_ending_the_daemon(tmp_path: Path) -> None:
    with Daemon(tmp_path, script={}) as daemon:
        (tmp_path / "config.toml").write_text("port = [")
        lm = Cli({name: value for name, value in Cli.at(tmp_path).env.items() if name != "LM_HOST"})
        assert lm("list").code == 2
        ended = lm("stop", "--daemon")
        assert ended.code == 0 and "the daemon has ended" in ended.err
        daemon.process.wait(20)
