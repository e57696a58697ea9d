"""From nothing to an answer, with the real engine: no daemon, no model, one command."""

from __future__ import annotations

from pathlib import Path

from tests.cli.support import Cli

ASK = ("run", "demo", "Once upon a time", "--seed", "7", "--temperature", "0", "--max-tokens", "24")


def test_one_command_from_nothing_to_an_answer(tmp_path: Path) -> None:
    lm = Cli.at(tmp_path)
    try:
        first = lm(*ASK)
        assert first.code == 0, first.err
        assert "fit the" in first.err and "is here" in first.err
        assert len(first.out.split()) > 5
        second = lm(*ASK)
        assert (second.out, second.err) == (first.out, "")
        assert [line.split()[0] for line in lm("ps").out.splitlines()[1:]] == ["demo:Q8_0"]
    finally:
        assert lm("stop", "--daemon").code == 0
