"""The blocks of docs/clients.md, each with its real package: a whole turn with a tool call, by the scripted engine.

The packages are in an environment of their own (extra `clients`, and tests/clients/package.json): `LM_CLIENTS` names
its Python, `LM_CLIENTS_NODE` the folder that holds `node_modules`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.daemon import Daemon, allowed, put_model

pytestmark = pytest.mark.slow
PAGE = Path(__file__).parents[2] / "docs" / "clients.md"
QUESTION = "What is 17 + 25?"
# The scripted engine answers with the last message: asked with a call, it calls; told the result, it says the result.
CALL = '<tool_call>{"name": "add", "arguments": {"a": 17, "b": 25}}</tool_call>'
# What a client makes of the question, where it wants no call of `add`: fields that it reads out of the answer.
ASKED = {
    "python-instructor": '{"name": "Sum", "arguments": {"a": 17, "b": 25}}',
    "python-dspy": "[[ ## answer ## ]]\n42\n\n[[ ## completed ## ]]",
}


class Block(NamedTuple):
    """One block of code of the page."""

    name: str
    language: str
    code: str


def blocks() -> list[Block]:
    found = re.findall(r"^### (.+?)\n.*?^```(python|js)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(f"{language}-{re.sub('[^a-z0-9]+', '-', name)}", language, code) for name, language, code in found]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    home = tmp_path_factory.mktemp("clients")
    put_model(home, "smollm2", capabilities=("completion", "tools", "thinking"))
    with Daemon(home, script={"echo": True}) as daemon:
        yield daemon


def runner(block: Block, folder: Path) -> tuple[list[str], Path]:
    """The command that runs a block, and the file that the block goes into."""
    if block.language == "python":
        if python := os.environ.get("LM_CLIENTS"):
            return [python], folder / "block.py"
        for package in re.findall(r"^(?:import|from) (\w+)", block.code, re.MULTILINE):
            if find_spec(package) is None:
                pytest.skip(f"LM_CLIENTS names no Python with the extra `clients`, and `{package}` is not here")
        return [sys.executable], folder / "block.py"
    modules = os.environ.get("LM_CLIENTS_NODE")
    node = shutil.which("node")
    if not modules or not node:
        pytest.skip(
            "LM_CLIENTS_NODE names no folder with the packages of tests/clients/package.json, or node is not here"
        )
    (folder / "node_modules").symlink_to(Path(modules) / "node_modules")
    return [node], folder / "block.mjs"


@pytest.mark.parametrize("block", blocks(), ids=lambda block: block.name)
def test_a_client_makes_a_whole_turn_with_a_call(block: Block, daemon: Daemon, tmp_path: Path) -> None:
    command, file = runner(block, tmp_path)
    assert QUESTION in block.code
    assert "http://127.0.0.1:11434" in block.code
    asked = json.dumps(ASKED.get(block.name, CALL))[1:-1]
    file.write_text(block.code.replace(QUESTION, asked).replace("http://127.0.0.1:11434", daemon.url))
    environment = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ} | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [*command, str(file)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=allowed(60),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "42", (done.stdout, done.stderr[-3000:])
