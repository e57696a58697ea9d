"""`lm run` and the model's thinking: shown apart at a terminal, kept out of pipes unless somebody asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.support import Cli, Terminal
from tests.daemon import Daemon, put_model

SAID = "<think>Let me see.</think>It is so."
PROMPT = "Send a message (/? for help)"


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    home = tmp_path_factory.mktemp("thinking")
    put_model(home, "thinker", capabilities=("completion", "thinking"))
    put_model(home, "plain")
    with Daemon(home, script={"echo": True}):
        yield Cli.at(home)


def test_a_pipe_gets_the_answer_alone(cli: Cli) -> None:
    assert cli("run", "thinker", SAID).out == "It is so.\n"
    assert cli("run", "thinker", "--think", "--hidethinking", SAID).out == "It is so.\n"
    assert cli("run", "thinker", "--think=false", SAID).out == "It is so.\n"


def test_a_pipe_gets_thinking_that_is_asked_for(cli: Cli) -> None:
    """The word after `--think` is the prompt."""
    shown = "Thinking...\nLet me see.\n...done thinking.\n\nIt is so.\n"
    assert cli("run", "thinker", "--think", SAID).out == shown
    assert cli("run", "thinker", "--think=low", SAID).out == shown


def test_what_a_model_cannot_and_no_level_is_said(cli: Cli) -> None:
    told = cli("run", "plain", "--think", "x")
    assert told.code
    assert "does not support thinking" in told.err
    assert "much" in cli("run", "thinker", "--think=much", "x").err


def test_a_terminal_shows_it_in_faint_letters(cli: Cli, tmp_path: Path) -> None:
    with Terminal(cli, "run", "thinker") as terminal:
        terminal.wait_for(PROMPT)
        terminal.type(f"{SAID}\r")
        terminal.wait_for("Thinking...\nLet me see.\n...done thinking.\n\nIt is so.\n")
        assert b"\x1b[2mLet" in terminal.raw
        for typed, told in (("/set think low", "thinks first"), ("/set nothink", "answers at once")):
            terminal.wait_for(PROMPT)
            terminal.type(f"{typed}\r")
            terminal.wait_for(told)
        terminal.wait_for(PROMPT)
        terminal.type("/set think much\r")
        terminal.wait_for("there is no `/set think much`")
        terminal.wait_for(PROMPT)
        terminal.type("/bye\r")
        assert terminal.end() == 0
