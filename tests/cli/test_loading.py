"""`lm load`, `lm unload`, `lm ps --watch`, and what `lm list` and `lm show` leave out on demand."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.support import Cli, Terminal
from tests.daemon import Daemon, put_model


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("home")
    for name in ("tiny", "tale", "vectors"):
        put_model(home, name, capabilities=("embedding",) if name == "vectors" else ("completion",))
    with Daemon(home, script={}) as running:
        yield running


@pytest.fixture(scope="module")
def lm(daemon: Daemon) -> Cli:
    return Cli.at(daemon.home, f"127.0.0.1:{daemon.port}")


def loaded(lm: Cli) -> set[str]:
    return {row["name"] for row in json.loads(lm("ps", "--json").out)}


def test_models_are_loaded_and_unloaded(lm: Cli) -> None:
    done = lm("load", "tiny", "vectors", "--keep-alive", "-1", "--ctx", "2000")
    assert (done.code, done.out) == (0, ""), done.err
    assert "`tiny:F32` is loaded: " in done.err and "2,048 tokens of context" in done.err
    assert loaded(lm) == {"tiny:F32", "vectors:F32"} and lm("ps", "TIN").out.count("forever") == 1
    done = lm("unload", "tale", "tiny")
    assert "`tale` was not loaded" in done.err and "unloaded `tiny:F32`" in done.err and done.code == 0
    assert loaded(lm) == {"vectors:F32"}
    assert "unloaded `vectors:F32`" in lm("unload", "--all").err and not loaded(lm)
    assert "nothing is loaded" in lm("unload", "--all").err


def test_loading_in_vain_is_told(lm: Cli, tmp_path: Path) -> None:
    done = lm("load", "./nowhere", "tale")
    assert done.code == 3 and "nowhere" in done.err and "`tale:F32` is loaded" in done.err
    assert lm("load", "tale", "--keep-alive", "soon").code == 2
    assert lm("unload", "nothing").code == 3
    for wrong in ((), ("tiny", "--all")):
        assert lm("unload", *wrong).code == 2
    nobody = Cli.at(tmp_path)
    assert nobody("unload", "tiny").code == 4
    waiting = nobody.popen("ps", "--watch", "--json", "--interval", "0.1")
    assert waiting.stderr is not None and waiting.stderr.readline().startswith(b"no daemon answers")
    waiting.send_signal(signal.SIGINT)
    assert b"".join(waiting.communicate(timeout=20)).strip() == b"" and waiting.returncode == 130


def test_watching_goes_on_until_ctrl_c(lm: Cli) -> None:
    lm("load", "tiny")
    process = lm.popen("ps", "--watch", "--json", "--interval", "0.1")
    assert process.stdout is not None
    for _ in range(3):
        assert "tiny:F32" in [row["name"] for row in json.loads(process.stdout.readline())]
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[1].strip() == b"" and process.returncode == 130
    with Terminal(lm, "ps", "--watch", "--interval", "0.1") as terminal:
        for _ in range(2):
            terminal.wait_for("tiny:F32")
        assert b"\x1b[2J" in terminal.raw
        terminal.type("\x03")
        assert terminal.end() == 130


def test_lists_of_names_that_begin_so(lm: Cli) -> None:
    assert [row["name"] for row in json.loads(lm("list", "T", "--json").out)] == ["tale:F32", "tiny:F32"]
    assert lm("list", "tin").out.splitlines()[1].startswith("tiny:F32")
    done = lm("list", "zz")
    assert done.code == 0 and "no name here begins with `zz`" in done.err


def test_parts_of_a_model(lm: Cli) -> None:
    assert "temperature" in lm("show", "tiny", "--parameters").out
    assert "FROM tiny:F32" in lm("show", "tiny", "--modelfile").out.splitlines()
    for part in ("license", "system"):
        done = lm("show", "tiny", f"--{part}")
        assert (done.code, done.out) == (0, "") and f"says nothing about its {part}" in done.err
    assert "Prompt" in lm("show", "tiny", "--template").out
    verbose = lm("show", "tiny", "--verbose").out
    assert "llama.block_count" in verbose and "blk.0.attn_q.weight" in verbose
    for two in (("--license", "--system"), ("--json", "--template")):
        done = lm("show", "tiny", *two)
        assert done.code == 2 and "exclude each other" in done.err


@pytest.mark.parametrize(
    ("arguments", "path", "field"),
    [
        (("list", "--json"), "/api/tags", "models"),
        (("list", "--found", "--json"), "/lm/found", "models"),
        (("list", "--partial", "--json"), "/lm/partials", "partials"),
        (("ps", "--json"), "/api/ps", "models"),
    ],
    ids=["list", "found", "partial", "ps"],
)
def test_json_has_the_rows_of_the_route(
    lm: Cli, daemon: Daemon, arguments: tuple[str, ...], path: str, field: str
) -> None:
    lm("load", "tiny", "tale")
    rows = daemon.get(path).json[field]
    told = json.loads(lm(*arguments).out)
    assert {frozenset(row) for row in told} == {frozenset(row) for row in rows if "alias" not in row}


def test_every_reading_command_speaks_json(lm: Cli) -> None:
    assert json.loads(lm("show", "tiny", "--json").out)["details"]["quantization_level"] == "F32"
    assert json.loads(lm("default", "tiny", "--json").out)["default"] == "tiny:F32"
    assert json.loads(lm("key", "list", "--json").out) == []
    assert "restart" in json.loads(lm("config", "get", "queue", "--json").out)
