"""Completion as a user sees it: Tab in a real bash, and what zsh and fish are told."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.support import LM, Cli, Terminal
from tests.daemon import Daemon, put_model


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    home = tmp_path_factory.mktemp("home")
    put_model(home)
    folder = home / "mine"
    for name in ("models/deep", "my model", "a:b"):
        (folder / name).mkdir(parents=True)
    for name in ("models/x.gguf", "models/notes.txt"):
        (folder / name).touch()
    with Daemon(home) as daemon:
        yield Cli.at(home, f"127.0.0.1:{daemon.port}")


@pytest.fixture(scope="module")
def bash(lm: Cli) -> Iterator[Terminal]:
    """A bash at a prompt in a folder of models, with the script in it."""
    path = f"{Path(LM).parent}:{lm.env['PATH']}"
    folder = Path(lm.env["LM_HOME"]) / "mine"
    env = {**lm.env, "PATH": path, "PS1": "$ ", "HOME": str(folder), "COLUMNS": "200"}
    program = shutil.which("bash")
    assert program is not None
    with Terminal(Cli(env, program), "--norc", "--noprofile", "-i") as terminal:
        terminal.type("PS1='rea''dy> '; bind 'set bell-style none'; bind 'set enable-bracketed-paste off'; cd\r")
        terminal.wait_for("ready> ")
        terminal.type('eval "$(lm completion bash)"\r')
        terminal.wait_for("ready> ")
        yield terminal


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("pul", "pull "),
        ("help doc", "doctor "),
        ("show ti", "tiny:F32 "),
        ("show tiny:", "tiny:F32 "),
        ("run 'a b' --level q5_k_m", "Q5_K_M "),
        ("pull org/repo:q5_k_m", "org/repo:Q5_K_M "),
        ("pull org/repo --level=q5_k_m", "--level=Q5_K_M "),
        ("run dem", "demo "),
        ("run mod", "models/"),
        ("fit models/x", "models/x.gguf "),
        ("fit ./models/x", "./models/x.gguf "),
        ("pull ~/models/x", "~/models/x.gguf "),
        ("pull ./models/x.gguf:q5_k_m", "./models/x.gguf:Q5_K_M "),
        ("pull my", "my\\ model/"),
        ("serve --home mod", "models/"),
        ("fit demo --kv-type iq4", "iq4_nl "),
        ("config set max_m", "max_models "),
        ("bench ti", "tiny:F32 "),
        ("unl", "unload "),
    ],
)
def test_tab_in_bash(bash: Terminal, typed: str, completed: str) -> None:
    bash.type(f"lm {typed}\t#")
    shown = _edited(bash.wait_for("#"))
    bash.type("\x15\r")
    bash.wait_for("ready> ")
    assert shown.endswith(f" {completed}#"), shown


def _edited(text: str) -> str:
    """What stands in the line after all backspaces: the cursor goes back, and other letters are written over."""
    line = ""
    at = 0
    for letter in text:
        if letter == "\b":
            at -= 1
        else:
            line, at = line[:at] + letter + line[at + 1 :], at + 1
    return line


@pytest.mark.parametrize("shell", ["zsh", "fish"])
@pytest.mark.parametrize(
    ("typed", "word", "told"),
    [
        (["run"], "ti", ["tiny:F32", "ti"]),
        (["run"], "./mo", ["./mo"]),
        (["pull"], "tiny:f", ["tiny:F32", "tiny:F16"]),
        (["pull", "demo", "--level"], "q5_k_m", ["Q5_K_M"]),
    ],
)
def test_what_other_shells_are_told(lm: Cli, shell: str, typed: list[str], word: str, told: list[str]) -> None:
    words = ["lm", *typed, word]
    at = word if shell == "fish" else str(len(words) - 1)
    env = {"_LM_COMPLETE": f"{shell}_complete", "COMP_WORDS": " ".join(words), "COMP_CWORD": at}
    lines = Cli({**lm.env, **env})().out.replace("plain,", "").replace("file,", "").splitlines()
    assert [line for line in lines if line not in ("plain", "file", "_")] == told


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(lm: Cli, shell: str) -> None:
    assert "_LM_COMPLETE" in lm("completion", shell).out
