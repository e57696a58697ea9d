"""`lm bench`, and `lm` alone at a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.support import Cli, Terminal
from tests.daemon import Daemon, put_model


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    home = tmp_path_factory.mktemp("bench")
    put_model(home)
    put_model(home, "vectors", capabilities=("embedding",))
    with Daemon(home, script={"tokens": ["word "] * 5000, "delay": 0.001, "prompt_delay": 0.01}) as daemon:
        yield Cli.at(home, f"127.0.0.1:{daemon.port}")


def test_rates_come_as_a_table_and_as_json(lm: Cli) -> None:
    sizes = ("--prompt", "16,64", "--gen", "8", "--depth", "0,32", "--repeat", "2")
    told = json.loads(lm("bench", "tiny", *sizes, "--json").out)
    assert (told["model"], told["kv_type"], told["context_length"], told["busy"]) == ("tiny:F32", "F16", 2048, 0)
    assert [row["test"] for row in told["tests"]] == ["pp16", "pp64", "tg8", "pp16 @ d32", "pp64 @ d32", "tg8 @ d32"]
    for row in told["tests"]:
        assert len(row["runs"]) == 2 and row["rate"] == pytest.approx(sum(row["runs"]) / 2, abs=0.01)
    done = lm("bench", "tiny", "--prompt", "16", "--gen", "8", "--repeat", "1")
    header, *rows = done.out.splitlines()
    assert header.split() == ["TEST", "TOKENS/S", "+/-"] and [row.split()[0] for row in rows] == ["pp16", "tg8"]
    assert "tiny:F32, " in done.err and "context 2,048 in F16 for 8 conversations" in done.err


@pytest.mark.slow
def test_a_real_model_reads_faster_than_it_writes(tmp_path: Path) -> None:
    with Daemon(tmp_path, runtime="llama") as daemon:
        daemon.pull("demo:Q8_0")
        lm = Cli.at(tmp_path, f"127.0.0.1:{daemon.port}")
        told = json.loads(lm("bench", "demo", "--prompt", "256", "--gen", "32", "--depth", "0,256", "--json").out)
        read, written, *behind = (row["rate"] for row in told["tests"])
        assert read > written > 0 and all(rate > 0 for rate in behind) and told["kv_type"] == "F16"


def test_what_cannot_be_measured_is_said(lm: Cli) -> None:
    done = lm("bench", "tiny", "--prompt", "4096", "--gen", "4", "--repeat", "1")
    assert done.code == 0 and "pp4096 is left out: 4,097 tokens are more than the context of 2,048" in done.err
    assert lm("bench", "vectors").code == 2 and "writes no text" in lm("bench", "vectors").err
    for wrong in (("--prompt", "many"), ("--gen", "0"), ("--depth", "-1")):
        assert lm("bench", "tiny", *wrong).code == 2


def test_lm_alone_shows_what_is_here_in_ten_lines(lm: Cli, tmp_path: Path) -> None:
    lm("load", "tiny")
    with Terminal(lm) as terminal:
        assert terminal.end() == 0
        lines = terminal.text.splitlines()
    assert len(lines) <= 10 and "tiny:F32" in lines[1] and "in all" in lines[1] and "tiny:F32 (" in lines[2]
    assert any("lm run tiny:F32 " in line for line in lines) and any("lm --help" in line for line in lines)
    assert lm().err.startswith("Usage: lm ")  # in a script, as before


def test_lm_alone_starts_nothing(tmp_path: Path) -> None:
    put_model(tmp_path, "asleep")
    with Terminal(Cli.at(tmp_path)) as terminal:
        assert terminal.end() == 0
        assert "asleep:F32" in terminal.text and "no daemon runs" in terminal.text
    assert not (tmp_path / "daemon.json").exists()
    with Terminal(Cli.at(tmp_path / "empty")) as terminal:
        assert terminal.end() == 0
        assert "nothing yet" in terminal.text and "lm run demo" in terminal.text
