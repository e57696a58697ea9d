"""`lm launch` with a stand-in on PATH, which prints what it was given and asks the daemon as the agent would."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.support import Cli, Ended
from tests.daemon import Daemon, put_model

NAME = "able:F32"
STAND_IN = """#!{python}
import json, os, sys, urllib.request

def ask(path, token, body=None):
    headers = {{"Authorization": f"Bearer {{token}}", "Content-Type": "application/json"}}
    data = json.dumps(body).encode() if body else None
    with urllib.request.urlopen(urllib.request.Request(path, data, headers)) as answer:
        return json.load(answer)

names, env, words = {names}, os.environ, sys.argv[1:]
answer = None
if "ANTHROPIC_BASE_URL" in env:
    body = {{"model": env["ANTHROPIC_MODEL"], "max_tokens": 9, "messages": [{{"role": "user", "content": "one two"}}]}}
    answer = ask(env["ANTHROPIC_BASE_URL"] + "/v1/messages", env["ANTHROPIC_AUTH_TOKEN"], body)["content"][0]["text"]
print(json.dumps({{"env": {{n: env.get(n) for n in names}}, "words": words, "answer": answer}}))
sys.exit(7)
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("launch")
    put_model(home, "able", capabilities=("completion", "tools"))
    put_model(home, "plain")
    with Daemon(home, script={"echo": True}, env={"LM_API_KEY": "secret"}) as daemon:
        yield daemon


def launch(daemon: Daemon, folder: Path, *words: str, install: str = "", names: tuple[str, ...] = ()) -> Ended:
    """Run `lm launch` with a stand-in of the name `install` alone on PATH."""
    (folder / "bin").mkdir(exist_ok=True)
    if install:
        program = folder / "bin" / install
        program.write_text(STAND_IN.format(python=sys.executable, names=list(names)))
        program.chmod(0o755)
    more = {"PATH": str(folder / "bin"), "HOME": str(folder), "LM_API_KEY": "secret"}
    return Cli.at(daemon.home, daemon.url.removeprefix("http://"), **more)("launch", *words)


def told(ended: Ended) -> Any:
    assert ended.code == 7, ended.err  # the stand-in's own exit code
    return json.loads(ended.out)


def test_claude_is_started_with_its_environment(daemon: Daemon, tmp_path: Path) -> None:
    names = ("ANTHROPIC_API_KEY", "ANTHROPIC_DEFAULT_HAIKU_MODEL", "CLAUDE_CODE_ATTRIBUTION_HEADER")
    ended = launch(daemon, tmp_path, "claude", "--model", "able", "--", "-p", "a b", install="claude", names=names)
    given = told(ended)
    assert list(given["env"].values()) == ["", "able", "0"]
    assert given["words"] == ["--model", "able", "-p", "a b"]
    assert given["answer"] == "one two"
    assert "note: `able` has a context of" in ended.err and "LM_CONTEXT" in ended.err


def test_codex_gets_a_provider_by_its_arguments(daemon: Daemon, tmp_path: Path) -> None:
    given = told(launch(daemon, tmp_path, "codex", install="codex", names=("OPENAI_API_KEY",)))
    assert given["env"] == {"OPENAI_API_KEY": "secret"}
    words = given["words"]
    assert {words[place] for place in range(0, len(words) - 2, 2)} == {"-c"} and words[-2:] == ["-m", NAME]
    assert f'model_providers.lm.base_url="{daemon.url}/v1"' in words
    assert 'model_providers.lm.wire_api="responses"' in words and 'model_provider="lm"' in words


def test_opencode_gets_its_configuration_in_a_variable(daemon: Daemon, tmp_path: Path) -> None:
    given = told(launch(daemon, tmp_path, "opencode", install="opencode", names=("OPENCODE_CONFIG_CONTENT",)))
    config = json.loads(given["env"]["OPENCODE_CONFIG_CONTENT"])
    provider = config["provider"]["lm"]
    assert provider["options"] == {"baseURL": f"{daemon.url}/v1", "apiKey": "secret"}
    assert list(provider["models"]) == [NAME] and config["model"] == f"lm/{NAME}"
    assert given["words"] == ["--model", f"lm/{NAME}"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "bin"]


def test_print_shows_lines_for_a_shell_and_starts_nothing(daemon: Daemon, tmp_path: Path) -> None:
    ended = launch(daemon, tmp_path, "claude", "--print", "--", "it's")
    lines = ended.out.splitlines()
    assert ended.code == 0 and f"export ANTHROPIC_BASE_URL={daemon.url}" in lines
    assert "export ANTHROPIC_API_KEY=''" in lines
    assert shlex.split(lines[-1]) == ["claude", "--model", NAME, "it's"]
    assert ended.err.startswith(f"Claude Code asks `{NAME}`")


def test_what_is_missing_is_said(daemon: Daemon, tmp_path: Path) -> None:
    ended = launch(daemon, tmp_path, "claude", "--model", "able")
    assert ended.code == 1 and "Claude Code is not installed: there is no `claude` on PATH" in ended.err
    assert "https://code.claude.com/docs" in ended.err
    ended = launch(daemon, tmp_path, "codex", "--model", "nope", install="codex")
    assert ended.code == 3 and 'model "nope" not found' in ended.err
    ended = launch(daemon, tmp_path, "codex", "--model", "plain", install="codex")
    assert ended.code == 1 and "`plain` knows no tools" in ended.err and f"`{NAME}` knows tools" in ended.err
    ended = launch(daemon, tmp_path, "emacs")
    assert ended.code == 2


def test_of_several_models_one_has_to_be_named(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for name in ("first", "second"):
        put_model(home, name, capabilities=("completion", "tools"))
    with Daemon(home, script={}) as daemon:
        ended = launch(daemon, tmp_path, "claude", "--print")
        assert ended.code == 2 and "`first:F32`" in ended.err and "`second:F32`" in ended.err
        daemon.post("/api/generate", {"model": "second"})  # the one that is loaded is meant
        assert "ANTHROPIC_MODEL=second:F32" in launch(daemon, tmp_path, "claude", "--print").out
