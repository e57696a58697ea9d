"""`lm config`: values, where they come from, and changes that keep the rest of `config.toml`."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.settings_file import edited
from tests.cli.support import Cli, Terminal
from tests.daemon import Daemon

FILE = """\
# my settings
context = 4096  # tokens
origins = [
    "https://a.example",  # one
    "https://b.example#c",
]
no_proxy = "a#b"   # two hosts
"""


def lines_of(lm: Cli) -> dict[str, list[str]]:
    return {line.split()[0]: line.split() for line in lm("config", "list").out.splitlines()[1:]}


def test_each_setting_says_where_it_comes_from(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(FILE)
    lm = Cli.at(tmp_path, "127.0.0.1:4711", OLLAMA_KEEP_ALIVE="90s", HF_TOKEN="hf_secret")
    rows = {row["name"]: row for row in json.loads(lm("config", "list", "--json").out)}
    sources = {name: (rows[name]["value"], rows[name]["source"]) for name in rows}
    assert sources["context"] == (4096, "file") and sources["queue"] == (64, "default")
    assert sources["keep_alive"] == (90, "environment") and rows["keep_alive"]["origin"] == "OLLAMA_KEEP_ALIVE"
    assert sources["port"] == (4711, "environment") and rows["port"]["origin"] == "LM_HOST"
    assert sources["hf_token"] == ("***", "environment")
    shown = lm("config", "list").out
    assert "hf_secret" not in shown and "config.toml" in shown
    assert lm("config", "get", "keep_alive").out == "90\n" and lm("config", "get", "context").out == "4096\n"
    assert "from LM_HOST" in lm("config", "get", "host").err


def test_a_change_keeps_comments_and_is_heard(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(FILE)
    lm = Cli.at(tmp_path)
    done = lm("config", "set", "context", "2048")
    assert done.code == 0 and f"`context` is 2048 in `{path}`" in done.err and "the next daemon has it" in done.err
    assert path.read_text() == FILE.replace("4096", "2048") and path.stat().st_mode & 0o077 == 0
    assert lm("config", "get", "context").out == "2048\n"
    assert lm("config", "set", "origins", "https://c.example").code == 0
    assert lm("config", "set", "keep_alive", "10m").code == 0 and lm("config", "get", "keep_alive").out == "600\n"
    assert lm("config", "set", "speculation", "false").code == 0
    assert tomllib.loads(path.read_text()) == {
        "context": 2048,
        "origins": ["https://c.example"],
        "no_proxy": "a#b",
        "keep_alive": "10m",
        "speculation": False,
    }
    assert "# my settings" in path.read_text() and "# two hosts" in path.read_text()
    assert "`origins` is taken out" in lm("config", "unset", "origins").err
    assert "was not set" in lm("config", "unset", "origins").err
    assert lm("config", "set", "hf_token", stdin=b"hf_secret\n").err.splitlines() == [
        f"`hf_token` is *** in `{path}`",
        "the next command has it",
    ]
    assert tomllib.loads(path.read_text())["hf_token"] == "hf_secret"


@pytest.mark.parametrize(
    ("arguments", "sentence", "hint"),
    [
        (("set", "context", "many"), "`context` cannot be 'many'", "it wants tokens"),
        (("set", "sequences", "0"), "`sequences` cannot be '0'", "it wants a number"),
        (("set", "contxt", "1"), "there is no setting `contxt`", "did you mean `context`?"),
        (("get", "nonsense"), "there is no setting `nonsense`", "`lm config list`"),
        (("set", "home", "/x"), "`home` is where `config.toml` lies", "LM_HOME"),
        (("set", "socket_role", "king"), "`socket_role` cannot be 'king'", "`infer`, `operator` or `admin`"),
    ],
)
def test_wrong_values_are_refused_by_their_own_check(
    tmp_path: Path, arguments: tuple[str, ...], sentence: str, hint: str
) -> None:
    done = Cli.at(tmp_path)("config", *arguments)
    assert (done.code, done.out) == (2, "") and not (tmp_path / "config.toml").exists()
    error, advice = done.err.splitlines()
    assert sentence in error and hint in advice


def test_a_file_that_is_wrong_can_be_corrected_and_one_that_is_none_is_left(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("context = 'many'\n")
    lm = Cli.at(tmp_path)
    assert lm("config", "list").code == 2
    assert lm("config", "set", "context", "4096").code == 0 and path.read_text() == "context = 4096\n"
    path.write_text("context = = 1\n")
    done = lm("config", "set", "context", "4096")
    assert done.code == 2 and "cannot be read" in done.err and path.read_text() == "context = = 1\n"


def test_what_overrides_and_what_wants_a_restart_is_said(tmp_path: Path) -> None:
    with Daemon(tmp_path, script={}) as daemon:
        lm = Cli.at(tmp_path, f"127.0.0.1:{daemon.port}", LM_QUEUE="7")
        assert "after `lm stop --daemon`" in lm("config", "set", "context", "512").err
        done = lm("config", "set", "queue", "9")
        assert "LM_QUEUE is set in this environment, and goes before the file" in done.err
        assert lm("config", "get", "queue").out == "7\n"


def test_a_secret_is_asked_for_without_an_echo(tmp_path: Path) -> None:
    with Terminal(Cli.at(tmp_path), "config", "set", "api_key") as terminal:
        terminal.wait_for("api_key: ")
        terminal.type("very-secret-key-of-mine\r")
        assert terminal.end() == 0
        assert "very-secret" not in terminal.text
    with Terminal(Cli.at(tmp_path), "config", "set", "api_key") as terminal:
        terminal.wait_for("api_key: ")
        terminal.type("\x03")
        assert terminal.end() == 130
    assert tomllib.loads((tmp_path / "config.toml").read_text()) == {"api_key": "very-secret-key-of-mine"}


NAMES = st.sampled_from(["context", "origins", "no_proxy", "api_key"])
VALUES = st.one_of(
    st.integers(-(2**62), 2**62),
    st.booleans(),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
    st.text(st.characters(exclude_categories=["Cs"])),
)


@given(st.lists(st.tuples(NAMES, st.none() | VALUES), max_size=8))
def test_any_change_leaves_what_it_does_not_mean(changes: list[tuple[str, object]]) -> None:
    text, expected = FILE, tomllib.loads(FILE)
    for name, value in changes:
        text = edited(text, name, value)
        expected.pop(name, None)
        if value is not None:
            expected[name] = value
        assert tomllib.loads(text) == expected
    assert text.startswith("# my settings\n")
